"""Preflight in a pod of the run: it tries what it was given, and says each thing that is wrong in a sentence."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multimodal_gemma.cluster.kube import client
from multimodal_gemma.cluster.preflight.findings import Finding
from multimodal_gemma.cluster.preflight.look import look
from multimodal_gemma.cluster.preflight.needs import Needs
from tests.servers.kubernetes_api import KubernetesServer
from tests.unit.data.serving import Clock
from tests.unit.training.test_store import bucket  # noqa: F401

SECRETS = {"huggingface": ["token"], "object-store": ["accesskey", "secretkey"], "mlflow": ["username", "password"]}


@contextlib.contextmanager
def answering(**answers: tuple[int, str]) -> Iterator[str]:
    """A server with one answer a method; GET with the right password is what MLflow says of an unknown experiment."""
    known = "Basic " + base64.b64encode(b"trainer:right").decode()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers.get(self.command, (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}'))
            if "GET" not in answers and self.command == "GET" and self.headers.get("Authorization") != known:
                status, body = 401, "You are not authenticated."
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = _answer

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Return what is found with some needs; the run may look at nothing of the cluster but its own rights."""
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    Clock(monkeypatch)
    with KubernetesServer() as server:
        server.denied |= {(verb, "", "secrets") for verb in ("get", "list")}
        path = server.kubeconfig(tmp_path / "kubeconfig")

        def look_inside(**needs) -> dict[str, Finding]:
            findings = look(lambda: client.connect(path), Needs("ml", inside=True, **needs), patience=2.0)
            assert not [path for _, path in server.requests if "/secrets" in path]
            return {finding.check: finding for finding in findings}

        yield look_inside


def test_secrets_are_looked_for_in_the_pods_own_variables(found, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "never shown")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    seen = found(secrets=SECRETS, required=["huggingface"])
    assert seen["secret huggingface"].told == (
        "this pod has no HF_TOKEN: Secret huggingface of ml is absent or has no key 'token'"
    )
    assert "has no AWS_SECRET_ACCESS_KEY" in seen["secret object-store"].told
    assert "create secret generic object-store --from-literal=accesskey=…" in seen["secret object-store"].remedy
    assert seen["secret mlflow"].state == "ok"  # nothing was given, and nothing is needed
    assert "never shown" not in json.dumps([finding.told + finding.remedy for finding in seen.values()])


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        ("trainer", "right", "knows trainer"),
        ("trainer", "wrong", "does not let this run in as 'trainer' with the password that it was given (401)"),
        ("", "", "does not let this run in without a user (401)"),
    ],
)
def test_mlflow_is_logged_in_to_with_what_the_pod_was_given(found, monkeypatch, user, password, expected) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with answering() as address:
        seen = found(registry=address)[f"login {address.removeprefix('http://')}"]
    assert seen.told.endswith(expected)
    assert (seen.state == "ok") == (password == "right")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(403, "", "forbids"), (503, "", "answers 503"), (404, "<html>", "answers 404, not as MLflow does")],
)
def test_an_mlflow_that_refuses_or_is_none_is_told(found, status, body, expected) -> None:
    with answering(GET=(status, body)) as address:
        seen = found(registry=address)[f"login {address.removeprefix('http://')}"]
    assert seen.state == "failed"
    assert expected in seen.told


def test_an_mlflow_that_is_down_is_told(found) -> None:
    assert "MLflow at 127.0.0.1:9 does not answer" in found(registry="http://127.0.0.1:9")["login 127.0.0.1:9"].told


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "SignatureDoesNotMatch", "the store refuses s3://spot/work (SignatureDoesNotMatch)"),
        (404, "NoSuchBucket", "there is no bucket 'spot'"),
        (507, "XMinioStorageFull", "s3://spot/work cannot be written (XMinioStorageFull)"),
        (500, "InternalError", "s3://spot/work cannot be written (InternalError, for 20 s)"),
    ],
)
def test_a_store_with_another_key_or_without_room_is_told(found, monkeypatch, status, code, expected) -> None:
    """What S3 answers (its list of error codes), what MinIO answers when its drives are full, and SeaweedFS then."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with answering(PUT=(status, body)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        seen = found(written=["s3://spot/work"])["login s3://spot/work"]
    assert seen.state == "failed"
    assert expected in seen.told


def test_a_store_that_can_be_written_gets_one_empty_object(found, bucket) -> None:  # noqa: F811
    assert found(written=["s3://spot/work", "s3://spot/work"])["login s3://spot/work"].state == "ok"
    assert [(one.object_name, one.size) for one in bucket.list_objects("spot", "work", recursive=True)] == [
        ("work/preflight", 0)
    ]
