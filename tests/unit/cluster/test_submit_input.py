"""What a person can get wrong: one sentence with its remedy, exit code 2, and nothing on the server."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp import connect
from tests.servers.kfp_api import KfpServer

FAST = ["--patience", "0.2"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with KfpServer() as running:
        monkeypatch.setenv("KFP_HOST", running.url)
        yield running


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["submit", *FAST, *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("mmgemma: ")
    assert "Traceback" not in err
    return sentence


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--param", "hardware=a10"], "parameter hardware is 'a10'. Did you mean 'a100'?"),
        (["--param", "p02_hardware=a10"], "parameter hardware is 'a10'"),
        (["--param", "contamination=perhaps"], "Choose one of allow, as the preset says, drop, fail."),
        (["--param", "secret_hub="], "parameter secret_hub is empty. Name a Secret, or leave it out"),
        (["--param", "secret_store= "], "parameter secret_store is empty"),
        (["--param", "preset=sample"], "give preset as --preset NAME"),
        (["--param", "p01_preset=sample"], "give p01_preset as --preset NAME"),
        (["--param", 'overrides=["training.epochs=1"]'], "give overrides as section.key=value"),
        (["--param", "data_image=s3://b"], "no parameter 'data_image'. Did you mean 'data_images'?"),
        (["--param", "data_images"], "is no NAME=VALUE"),
        (["--param", f"data_images={'x' * 10_000}"], "KFP accepts 10,000 in all; the largest is p04_data_images"),
        (["--param", "hardware=custom"], "resources.hardware=custom says nothing about resources.cpu"),
        (["--preset", "llava-150k"], "preset llava-150k would train for days without a GPU"),
        (["--preset", "llava-150k", "--param", "hardware=a100-spot"], "Set training.checkpoint_uri=s3://"),
        (["resources.cpu=2", "training.nodes=2", "resources.spot=true"], "Set training.checkpoint_uri=s3://"),
        (["training.epoch=3"], "'training.epoch' is no key of preset sample. Did you mean 'training.epochs'?"),
        (["training.epochs=three"], "does not fit preset sample"),
        (["--preset", "smaple"], "there is no preset 'smaple'"),
        (["--pipeline", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--token", "a", "--token-command", "b"], "give only one of --token"),
        (["--host", "not a host"], "'not a host' is no address"),
        (["--host", "ftp://kfp.example.com"], "is no address"),
        (["--port-forward", "ml-pipeline"], "give --host or --port-forward, not both"),
        (["--ca", "nowhere.pem"], "nowhere.pem does not exist"),
        (["--token-file", "nowhere"], "nowhere cannot be read"),
        (["--token-command", "false"], "--token-command ended with exit code 1"),
        (["--experiment", "multimodal-gema"], "no experiment 'multimodal-gema'. Did you mean 'multimodal-gemma'?"),
        (["--pipeline-version", "sha256-0000"], "has no version 'sha256-0000'. Choose one of 0.1.0+"),
        (["--follow", "run-9999"], "no run 'run-9999'"),
        (["--stop", "run-9999"], "no run 'run-9999'"),
    ],
)
def test_a_mistake_is_one_sentence(
    server: KfpServer, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    if argv[0] in ("--experiment", "--pipeline-version"):
        assert cli.main(["submit", *FAST, "--detach"]) == 0
        capsys.readouterr()
    before = len(server.runs)
    if argv[0] in ("--port-forward",):
        argv = [*argv, "--host", server.url]
    assert said in refused(capsys, *argv)
    assert len(server.runs) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_images: 8", "data_images is a text, and 8 is none. Put it in quotes."),
        ("overrides: training.epochs=1", "overrides is a JSON list"),
        ("overrides: [training.epoch=1]", "'training.epoch' is no key of preset sample"),
        ("hardware: a10", "parameter hardware is 'a10'"),
        ("secret_registry: ''", "parameter secret_registry is empty"),
        ("data_image: s3://b", "no parameter 'data_image'. Did you mean 'data_images'?"),
        ("preset: smaple", "there is no preset 'smaple'"),
        ("- a", "is no file of parameters"),
        ("a: [", "is no file of parameters"),
    ],
)
def test_a_mistake_in_a_file_of_parameters(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "params.yaml").write_text(text)
    assert said in refused(capsys, "--params", str(tmp_path / "params.yaml"))
    assert "cannot be read" in refused(capsys, "--params", str(tmp_path / "none.yaml"))
    assert server.requests == []


def test_an_experiment_is_made_on_request(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--create-experiment" in refused(capsys, "--experiment", "mine")
    assert cli.main(["submit", "--detach", "--experiment", "mine", "--create-experiment"]) == 0
    assert [known["display_name"] for known in server.experiments.values()] == ["mine"]


@pytest.mark.parametrize("status", [200, 302, 403, 404])
def test_a_login_page_is_recognised(server: KfpServer, capsys: pytest.CaptureFixture[str], status: int) -> None:
    page = {"Content-Type": "text/html"} | ({"Location": "/dex/auth"} if status == 302 else {})
    server.misbehave(status, times=9, headers=page, body="<!doctype html><title>Log in</title>")
    said = refused(capsys)
    assert "answers with a web page" in said
    assert "/pipeline" in said


def test_an_expired_token_that_cannot_be_renewed_says_what_can(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokens = {"new"}
    assert "--token-file or --token-command" in refused(capsys, "--token", "old")


def test_a_renewed_token_that_is_refused_too_is_no_endless_loop(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokens = {"new"}
    assert "A renewed token is refused too" in refused(capsys, "--token-command", "echo old")
    assert len(server.requests) == 2


def test_missing_rights_name_the_role(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.misbehave(403, body='{"error": "User is not authorized", "code": 7}')
    said = refused(capsys)
    assert "User is not authorized" in said
    assert "kubeflow-edit" in said


def test_a_host_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "nothing listens there" in refused(capsys, "--host", f"http://127.0.0.1:{port}")
    assert "its name is not known" in refused(capsys, "--host", "http://kfp.invalid")


def test_a_certificate_that_nobody_vouches_for(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files],
        check=True,
        capture_output=True,
        timeout=300,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    server._listener.socket = context.wrap_socket(server._listener.socket, server_side=True)
    secure = server.url.replace("http:", "https:")
    assert "certificate verify failed" in refused(capsys, "--host", secure)
    assert cli.main(["submit", "--detach", "--host", secure, "--ca", str(tmp_path / "ca.pem")]) == 0


def test_in_a_pod_the_server_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert connect._address(None) == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert connect._address("kfp.example.com/pipeline") == "https://kfp.example.com/pipeline"


def test_a_client_that_is_not_installed(
    server: KfpServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kfp_server_api", None)
    assert "pip install 'multimodal-gemma[pipeline]'" in refused(capsys)


def test_no_host_at_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_HOST", "KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert "which server? Give --host" in refused(capsys)


def test_a_server_that_stays_away_while_a_run_is_followed_does_not_lose_the_run(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokens = {"good"}
    server.misbehave(401, contains="/runs/run-", times=99)
    said = refused(capsys, "--token", "good", "--every", "0")
    assert said.endswith("The run goes on: mmgemma submit --follow run-0004")


def test_what_the_server_refuses_is_told(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.misbehave(400, method="POST", contains="/runs", body='{"error": "Invalid input error: no", "code": 3}')
    assert "refuses this (400): Invalid input error: no" in refused(capsys)


def test_a_file_that_is_no_pipeline(server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("a: 1")
    assert "is no compiled pipeline" in refused(capsys, "--pipeline", str(tmp_path / "other.yaml"))
    assert server.requests == []


def test_a_service_that_the_api_server_does_not_reach(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    with KfpServer() as server:
        config = ["--kubeconfig", str(server.kubeconfig(tmp_path / "config"))]
        said = refused(capsys, "--port-forward", "kubeflow/ml", *config)
        assert "gives no way to KFP (404)" in said
        assert "kubectl port-forward" in said
        assert "no NAMESPACE/SERVICE" in refused(capsys, "--port-forward", "ml", *config)
        assert "a token does not reach KFP" in refused(capsys, "--port-forward", "kubeflow/ml", "--token", "a", *config)
    assert "there is no kubeconfig at" in refused(capsys, "--port-forward", "kubeflow/ml", "--kubeconfig", "nowhere")


def test_a_server_that_drops_the_platforms_part_is_refused(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.drops_platform = True
    assert "drops the platform's part of a pipeline" in refused(capsys)
    assert server.runs == {}
