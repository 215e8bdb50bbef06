"""A cluster's weather: lost connections, 429, 5xx and expired tokens cost a run nothing but time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp import tokens
from tests.servers.kfp_api import KfpServer

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
    assert tokens.choose().get() == "projected"
    assert tokens.choose().renewable
    monkeypatch.setenv("KFP_TOKEN", "of the environment")
    assert tokens.choose().get() == "of the environment"


def test_a_token_is_never_shown(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.tokens = {"other"}
    assert cli.main(["submit", *FAST, "--token", "very-secret"]) == 2
    assert "very-secret" not in "".join(capsys.readouterr())
    assert "very-secret" not in repr(tokens.choose("very-secret"))


KUBECTL = """#!{python}
import socket, sys, threading
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
listener = socket.create_server(("127.0.0.1", 0))
print("Forwarding from 127.0.0.1:%d -> 8888" % listener.getsockname()[1], flush=True)
def pipe(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.close()
served = 0
while served < {lives}:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", {port}))
    threading.Thread(target=pipe, args=(near, far), daemon=True).start()
    threading.Thread(target=pipe, args=(far, near), daemon=True).start()
    served += 1
import time; time.sleep({linger})
"""


@pytest.mark.parametrize(("lives", "linger", "started"), [(99, 0, 1), (1, 0.3, 2)])
def test_a_port_forward_is_opened_ended_and_renewed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    lives: int,
    linger: float,
    started: int,
) -> None:
    import sys

    with KfpServer() as server:
        server.step = 200 if started > 1 else 2_500
        log = tmp_path / "log"
        fake = tmp_path / "kubectl"
        port = int(server.url.rpartition(":")[2])
        fake.write_text(KUBECTL.format(python=sys.executable, log=str(log), port=port, lives=lives, linger=linger))
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("KFP_HOST", raising=False)
        code, said = submitted(capsys, "--port-forward", "kubeflow/ml-pipeline")
    assert (code, said["gate"]) == (0, "passed")
    calls = log.read_text().splitlines()
    assert calls[0] == "-n kubeflow port-forward service/ml-pipeline :8888"
    assert len(calls) >= started
    assert said["link"].startswith("run run-")  # a forwarded API has no UI
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(fake) not in process.read_bytes().decode()
        except OSError:
            continue
