"""Kubeflow Trainer hears how far a training is: by TLS, with the token of the moment, and never at training's cost."""

from __future__ import annotations

import datetime
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from multimodal_gemma.stages import train
from multimodal_gemma.training import trackers
from tests.unit.training import toys

PLACE = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs/mmgemma-1/status"  # pkg/statusserver/utils.go


class StatusServer:
    """Answers as pkg/statusserver of kubeflow/trainer: 403 to another token, 422 to what its type does not take."""

    def __init__(self, folder: Path) -> None:
        self.token, self.taken, self.refused = folder / "token", [], []
        self.allowed = "first"
        self.token.write_text("first\n")
        self.authority, key = folder / "ca.crt", folder / "key.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
        files = ["-keyout", str(key), "-out", str(self.authority)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = told.judge(self.path, self.headers["Authorization"], body)
                (told.taken if status == 200 else told.refused).append(json.loads(body)["trainerStatus"])
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_port}{PLACE}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def judge(self, path: str, credentials: str, body: bytes) -> int:
        if path != PLACE:
            return 404
        if credentials != f"Bearer {self.allowed}":
            return 403
        status = json.loads(body)["trainerStatus"]
        datetime.datetime.strptime(status["lastUpdatedTime"], "%Y-%m-%dT%H:%M:%SZ")  # metav1.Time: RFC 3339
        numbers = [status["progressPercentage"], status.get("estimatedRemainingSeconds", 0)]
        texts = [text for metric in status["metrics"] for text in (metric["name"], metric["value"])]
        fits = all(type(number) is int and number >= 0 for number in numbers) and numbers[0] <= 100
        fits = fits and all(isinstance(text, str) and 1 <= len(text) <= 64 for text in texts)
        fits = fits and len(status["metrics"]) <= 256 and len(body) <= 1 << 16
        known = {"progressPercentage", "estimatedRemainingSeconds", "metrics", "lastUpdatedTime"}
        return 200 if fits and set(status) <= known else 422


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[StatusServer]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    made = StatusServer(tmp_path)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", made.url)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(made.authority))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(made.token))
    monkeypatch.setattr(trackers, "_TELL_EVERY", 0.0)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_training_fills_the_status_of_its_trainjob(server, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_LOOK_EVERY", 0.01)
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    train.run(toys.configuration(), dataset, models, tmp_path / "model")
    assert server.refused == []
    shares = [status["progressPercentage"] for status in server.taken]
    assert shares == sorted(shares)
    assert shares[0] in (16, 33, 50, 66, 83, 100)  # of six steps
    last = server.taken[-1]
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    metrics = {metric["name"]: float(metric["value"]) for metric in last["metrics"]}
    line = json.loads((tmp_path / "model" / "curves.jsonl").read_text().splitlines()[-1])
    assert metrics["loss"] == pytest.approx(line["loss"], rel=1e-5)
    assert metrics["validation_loss"] == pytest.approx(line["validation_loss"], rel=1e-5)


def test_a_token_that_was_changed_is_read_again(server):
    status = trackers.TrainerStatus()
    status.tell(0.455, 61.7, {"loss": 1.25})
    server.allowed = "second"
    with pytest.raises(OSError, match="answers 403"):
        status.tell(0.5, 60, {})
    server.token.write_text("second\n")
    status.tell(1.5, None, {"loss": float("nan"), "x" * 99: 1e300, **{f"m{n}": n for n in range(300)}})
    first, second = server.taken
    assert (first["progressPercentage"], first["estimatedRemainingSeconds"]) == (45, 61)
    assert first["metrics"] == [{"name": "loss", "value": "1.25"}]
    assert second["progressPercentage"] == 100
    assert "estimatedRemainingSeconds" not in second


def test_a_server_that_another_authority_vouches_for_gets_no_token(server, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    other = StatusServer(tmp_path / "other")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(other.authority))
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        trackers.TrainerStatus().tell(0.1, None, {})
    assert (server.taken, server.refused) == ([], [])
    other.server.shutdown()
    other.server.server_close()


def test_messages_are_apart(server, monkeypatch):
    monkeypatch.setattr(trackers, "_TELL_EVERY", 30.0)
    status = trackers.TrainerStatus()
    assert status.due == 0
    status.tell(0.1, None, {})
    assert 0 < status.due <= 30.0


@pytest.mark.parametrize("trouble", ["refused", "gone", "no token"])
def test_a_trainer_that_does_not_take_it_is_named_once(server, tmp_path, monkeypatch, trouble):
    if trouble == "refused":
        server.allowed = "somebody else's"
    elif trouble == "gone":
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://localhost:9{PLACE}")
    else:
        server.token.unlink()
    monkeypatch.setattr(trackers, "_LOOK_EVERY", 0.01)
    warnings: list[str] = []
    monkeypatch.setattr("logging.Logger.warning", lambda _, text, *__: warnings.append(text))
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    made = train.run(toys.configuration(), dataset, models, tmp_path / "model")
    assert made.numbers["steps"] == 6
    told = [text for text in warnings if text.startswith("Kubeflow Trainer does not take the status")]
    assert len(told) == 1
    assert "first" not in told[0]  # the token


def test_without_a_trainer_nobody_is_told(monkeypatch):
    for name in ("URL", "CA_CERT", "TOKEN"):
        monkeypatch.delenv(f"KUBEFLOW_TRAINER_SERVER_{name}", raising=False)
    assert not trackers.TrainerStatus().wanted
