"""Real servers on the loopback interface, each in a folder and on a port of its own, gone after the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PATIENCE = 120  # seconds until a server must have started
BUCKET = "mlflow"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A process that serves on a port; it can be killed and started again there."""

    def __init__(self, name: str, command: Sequence[str], port: int, folder: Path, *, user: str | None = None) -> None:
        self.name, self.command, self.port, self.folder, self.user = name, list(command), port, folder, user
        self.environment: dict[str, str] = {}
        self.ready: Callable[[], bool] = self._answers_http
        self.health = "/health"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where an HTTP server answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        path = self.folder / f"{self.name}.log"
        with path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env={**os.environ, **self.environment},
                user=self.user,
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.ready():
                return
            time.sleep(0.2)
        self.stop()
        raise AssertionError(path.read_text())

    def stop(self) -> None:
        """Kill it and its workers, as when a node goes away."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=60)
            self.process = None

    def _answers_http(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}{self.health}", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def listens(self) -> bool:
        """Tell whether the port accepts connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


def mlflow(folder: Path, store: str, artifacts: str, environment: Mapping[str, str] | None = None) -> Server:
    """Return an MLflow server, not yet started."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts,
    ]  # fmt: skip
    made = Server("mlflow", command, port, folder)
    made.environment = dict(environment or {})
    return made


def postgres_programs() -> Path | None:
    """Return the folder with initdb and postgres; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Yield the URI of an empty database; the server refuses to run as root, so root runs it as nobody."""
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        port, data = free_port(), str(folder / "data")
        initialise = [str(programs / "initdb"), "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"]
        subprocess.run(initialise, check=True, capture_output=True, user=user, cwd=folder, timeout=1800)
        command = [
            str(programs / "postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off",
        ]  # fmt: skip
        server = Server("postgres", command, port, folder, user=user)
        server.ready = server.listens
        server.start()
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment by which S3's clients find a store with an empty bucket."""
    import boto3

    port = free_port()
    server = Server("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, folder)
    server.health = "/moto-api/"
    server.start()
    try:
        client = boto3.client(
            "s3",
            endpoint_url=server.uri,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield {"MLFLOW_S3_ENDPOINT_URL": server.uri, **KEYS}
    finally:
        server.stop()
