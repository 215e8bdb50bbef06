"""What MLflow says when it cannot be had: one sentence, within seconds."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_gemma import environment
from multimodal_gemma.config.schema import RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server
from tests.unit.registry.artifacts import ensure_run


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], str]]:
    """Start a server on a free port that gives one status to every request but that for its health."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    started: list[http.server.ThreadingHTTPServer] = []

    def start(status: int, body: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, text = (200, "OK") if self.path == "/health" else (status, body)
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_address[1]}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "who are you", "does not know who asks (401)"),
        (403, "Invalid Host header", "forbids this (403)"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "forbids this (403)"),
        (404, "", "is no MLflow server"),
        (500, "oops", "fails with error 500"),
        (503, "starting", "fails with error 503"),
    ],
)
def test_a_refusal_is_one_sentence(answering: Callable[[int, str], str], status: int, body: str, words: str) -> None:
    uri = answering(status, body)
    with pytest.raises(InputError) as error:
        ensure_run(RegistryConfig(tracking_uri=uri), "run")
    assert words in str(error.value)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dead_server_does_not_hold_a_stage_up() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot be reached"):
        ensure_run(RegistryConfig(tracking_uri="http://127.0.0.1:9"), "run")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "no MLflow is named"),
        ("file:///tmp/runs", "sqlite:////tmp/runs/mlflow.db"),
        ("mlruns", "is a folder"),
        ("ftp://host/x", "no MLflow that can be used"),
        ("sqlite://", "names no database file"),
        ("sqlite:///:memory:", "names no database file"),
    ],
)
def test_what_is_no_registry_is_refused(monkeypatch: pytest.MonkeyPatch, uri: str, words: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="registry: ") as error:
        ensure_run(RegistryConfig(tracking_uri=uri), "run")
    assert words in str(error.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(InputError, match="is no SQLite database"):
        ensure_run(RegistryConfig(tracking_uri=f"sqlite:///{path}"), "run")
    assert path.read_text() == "not a database, " * 100


def test_a_server_of_mlflow_2_is_refused_before_anything_is_trained(answering: Callable[[int, str], str]) -> None:
    with pytest.raises(InputError, match="is version 2.14.3, which knows no logged models"):
        server.check(RegistryConfig(tracking_uri=answering(200, "2.14.3")))
    server.check(RegistryConfig(tracking_uri=answering(200, "3.17.2")))
    server.check(RegistryConfig(tracking_uri=answering(200, "<html>a proxy's page</html>")))


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.shown("postgresql://me:secret@db/mlflow") == "postgresql://me:***@db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:p%40ss%2Fw%3Ard@host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    said = ValueError("Invalid header 'Bearer t0ken' for http://me:p%40ss%2Fw%3Ard@host or p@ss/w:rd\nmore")
    assert server.first_line(said) == "Invalid header 'Bearer ***' for http://me:***@host or ***"


def test_a_line_break_at_a_credentials_end_is_removed_and_one_inside_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken\r\n")
    environment.prepare()
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "t0ken"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3\ncret")
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY holds a line break") as error:
        environment.prepare()
    assert "cret" not in str(error.value)


def test_configuration_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert server.tracking_uri(RegistryConfig(tracking_uri="sqlite:///x.db")) == "sqlite:///x.db"
    assert server.tracking_uri(RegistryConfig()) == "http://elsewhere"


def test_the_process_keeps_its_own_mlflow(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    mine = f"sqlite:///{tmp_path}/mine.db"
    mlflow.set_tracking_uri(mine)
    try:
        with server.connected(RegistryConfig(tracking_uri=database)):
            assert mlflow.get_tracking_uri() == database
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == mine
        assert "MLFLOW_REGISTRY_URI" not in os.environ  # it would send every later process to the wrong registry
    finally:
        mlflow.set_tracking_uri("")


def test_the_platforms_variable_outlives_every_connection(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with server.connected(RegistryConfig(tracking_uri=database)):
        pass
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    for _ in range(2):
        with server.connected(RegistryConfig()):
            assert os.environ["MLFLOW_TRACKING_URI"] == database
        assert os.environ["MLFLOW_TRACKING_URI"] == database


def test_an_artifact_store_without_its_bucket_or_its_package_is_one_sentence(database: str) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    refused = exceptions.ClientError({"Error": {"Code": "NoSuchBucket", "Message": "no such bucket"}}, "PutObject")
    with (
        pytest.raises(InputError, match="the artifact store of MLflow at .* refuses: .*NoSuchBucket") as error,
        server.connected(RegistryConfig(tracking_uri=database)),
    ):
        raise refused
    assert "\n" not in str(error.value)
    with (
        pytest.raises(InputError, match="needs the package boto3, which is not installed"),
        server.connected(RegistryConfig(tracking_uri=database)),
    ):
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")
    with pytest.raises(ZeroDivisionError), server.connected(RegistryConfig(tracking_uri=database)):
        raise ZeroDivisionError  # a mistake of ours is no store's
