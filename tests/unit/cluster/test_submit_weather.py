"""A cluster's weather: lost connections, 429, 5xx and expired tokens cost a run nothing but time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp import connect
from tests.servers.kfp_api import PROXY, KfpServer

FAST = ["--every", "0.01", "--patience", "0.4"]
RUN = "/runs/run-"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with KfpServer() as running:
        monkeypatch.setenv("KFP_HOST", running.url)
        yield running


def submitted(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any]:
    code = cli.main(["submit", *FAST, "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_lost_in_the_middle_of_a_follow_is_taken_up_again(
    server: KfpServer, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    server.misbehave(cut=cut, contains=RUN, times=2)
    assert cli.main(["submit", *FAST]) == 0
    out, err = capsys.readouterr()
    assert err.count("the connection was lost; trying again") == 1  # the same trouble is said once
    assert "the server answers again" in err
    assert "passed the gate" in out


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: KfpServer, capsys: pytest.CaptureFixture[str], status: int) -> None:
    server.misbehave(status, contains=RUN, times=2, body="<html>Bad Gateway</html>")
    assert submitted(capsys)[0] == 0


def test_retry_after_is_obeyed(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.misbehave(429, contains=RUN, headers={"Retry-After": "0.7"})
    begun = time.monotonic()
    assert submitted(capsys)[0] == 0
    assert time.monotonic() - begun > 0.7


@pytest.mark.parametrize(
    ("path", "kept"), [("/runs", "runs"), ("/upload_version", "versions"), ("/pipelines", "pipelines")]
)
@pytest.mark.parametrize("cut", ["before", "after"])
def test_what_a_broken_connection_leaves_in_doubt_is_made_exactly_once(
    server: KfpServer, capsys: pytest.CaptureFixture[str], path: str, kept: str, cut: str
) -> None:
    server.misbehave(cut=cut, method="POST", contains=path)
    assert submitted(capsys, "--detach")[0] == 0
    assert len(getattr(server, kept)) == 1


@pytest.mark.parametrize("path", ["/pipelines/upload_version", "/experiments"])
def test_somebody_else_may_be_quicker(server: KfpServer, capsys: pytest.CaptureFixture[str], path: str) -> None:
    submitted(capsys, "--detach")
    kept = [server.versions, server.experiments][path == "/experiments"]
    (key, record), *_ = kept.items()
    del kept[key]
    # It appears between this command's question and its own attempt, which is answered with 409.
    before = server.answer

    def answer(method: str, asked: str, *args: Any) -> Any:
        if (method, asked) == ("POST", f"/apis/v2beta1{path}"):
            kept[key] = record
        return before(method, asked, *args)

    server.answer = answer  # type: ignore[method-assign]
    code, said = submitted(capsys, "--detach")
    assert code == 0
    assert len(kept) == 1
    assert said["pipeline"]["uploaded"] is False


def test_an_expired_token_is_read_again_from_its_file(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    server.tokens = {"first"}
    before = server.answer

    def answer(method: str, asked: str, *args: Any) -> Any:
        made = before(method, asked, *args)
        if "/runs/run-" in asked and server.tokens == {"first"}:  # in the middle of the follow
            server.tokens = {"second"}
            file.write_text("second\n")
        return made

    server.answer = answer  # type: ignore[method-assign]
    code, said = submitted(capsys, "--token-file", str(file))
    assert (code, said["gate"]) == (0, "passed")
    assert server.tokens == {"second"}


def test_a_token_command_is_run_again(server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server.tokens = {"2"}  # the second that it prints
    script = tmp_path / "token.sh"
    script.write_text(f"#!/bin/sh\nn=$(($(cat {tmp_path}/n 2>/dev/null || echo 0) + 1))\necho $n | tee {tmp_path}/n\n")
    script.chmod(0o755)
    assert submitted(capsys, "--detach", "--token-command", str(script))[0] == 0
    assert (tmp_path / "n").read_text() == "2\n"


def test_a_pods_own_token_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert connect.choose().get() == "projected"
    assert connect.choose().renewable
    monkeypatch.setenv("KFP_TOKEN", "of the environment")
    assert connect.choose().get() == "of the environment"


def test_a_token_is_never_shown(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.tokens = {"other"}
    assert cli.main(["submit", *FAST, "--token", "very-secret"]) == 2
    assert "very-secret" not in "".join(capsys.readouterr())
    assert "very-secret" not in repr(connect.choose("very-secret"))


def test_through_the_api_server_no_port_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    with KfpServer() as server:
        server.tokens = {"kube"}
        server.objects["/api/v1/namespaces/kubeflow/serviceaccounts/multimodal-gemma"] = {"metadata": {}}
        kubeconfig = ["--kubeconfig", str(server.kubeconfig(tmp_path / "config"))]
        code, said = submitted(capsys, "--port-forward", "kubeflow/ml-pipeline", *kubeconfig)
    assert (code, said["gate"]) == (0, "passed")
    assert said["link"].startswith("run run-")  # a proxied API has no UI
    assert not any(path.startswith(("/apis/v2beta1", "/apis/v1alpha1")) for _, path in server.requests)
    assert server.count("POST", f"{PROXY}/apis/v2beta1/runs") == 1
    assert server.runs[said["run_id"]]["service_account"] == "multimodal-gemma"  # which the kubeconfig shows


def test_a_login_to_kubernetes_that_ends_in_the_middle_of_a_follow_is_renewed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    with KfpServer() as server:
        server.tokens = {"kube"}
        config, before = server.kubeconfig(tmp_path / "config"), server.answer

        def answer(method: str, asked: str, *args: Any) -> Any:
            if "/runs/run-" in asked and server.tokens == {"kube"}:
                server.tokens = {"second"}
                server.kubeconfig(config, "second")
            return before(method, asked, *args)

        server.answer = answer  # type: ignore[method-assign]
        code, said = submitted(capsys, "--port-forward", "kubeflow/ml-pipeline", "--kubeconfig", str(config))
    assert (code, said["gate"], server.tokens) == (0, "passed", {"second"})
