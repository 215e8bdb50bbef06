"""The commands of manifests/secrets.md, run as they stand: what they leave is enough for a run, and no more.

`kubectl` is a stand-in that keeps Secrets in a folder and runs `exec` on this machine; MLflow is a real server behind
basic authentication, as in manifests/mlflow.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import mlflow_servers

pytest.importorskip("flask_wtf", reason="MLflow's basic authentication needs Flask-WTF")

REPOSITORY = Path(__file__).parents[2]
KUBECTL = """#!{python}
import base64, os, pathlib, re, subprocess, sys

folder = pathlib.Path(os.environ["SECRETS"])
arguments = sys.argv[1:]
namespace = arguments[arguments.index("-n") + 1]
verb = arguments[2]
if verb == "rollout":
    sys.exit(0)
if verb == "exec":
    sys.exit(subprocess.run(arguments[arguments.index("--") + 1:], stdin=sys.stdin).returncode)
if verb == "get":
    key = re.search(r"data[.](\\w+)", arguments[-1])[1]
    sys.stdout.write(base64.b64encode((folder / namespace / arguments[4] / key).read_bytes()).decode())
if verb == "create":
    secret = folder / namespace / arguments[5]
    secret.mkdir(parents=True)
    for key, value in (a.removeprefix("--from-literal=").split("=", 1) for a in arguments[6:]):
        (secret / key).write_text(value)
"""


class Secrets:
    """The blocks of the page, run by a shell in which `kubectl` is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder, tools = folder / "secrets", folder / "tools"
        tools.mkdir()
        (tools / "kubectl").write_text(KUBECTL.format(python=sys.executable))
        (tools / "kubectl").chmod(0o755)
        page = (REPOSITORY / "manifests" / "secrets.md").read_text()
        self.blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        path = f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "SECRETS": str(self.folder)}
        for key in ("accesskey", "secretkey"):
            platform = self.folder / "kubeflow" / "mlpipeline-minio-artifact"
            platform.mkdir(parents=True, exist_ok=True)
            (platform / key).write_text(f"the {key}")

    def run(self, word: str, *changes: tuple[str, str], **environment: str) -> None:
        """Run the first block that contains a word."""
        script = self.blocks[0] + next(block for block in self.blocks if word in block)
        for before, after in changes:
            assert before in script
            script = script.replace(before, after)
        subprocess.run(["bash", "-euc", script], env={**self.environment, **environment}, timeout=120, check=True)

    def value(self, namespace: str, secret: str, key: str) -> str:
        """Return what a Secret holds."""
        return (self.folder / namespace / secret / key).read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Secrets, str]]:
    """The Secrets after the page, and the address of the MLflow server that was started with them."""
    folder = tmp_path_factory.mktemp("mlflow")
    secrets = Secrets(folder)
    secrets.run("secret generic object-store")
    secrets.run("secret generic mlflow-admin")
    settings = (REPOSITORY / "manifests" / "mlflow" / "basic_auth.ini").read_text()
    settings = re.sub(r"database_uri = .*", f"database_uri = sqlite:///{folder}/users.db", settings)
    (folder / "basic_auth.ini").write_text(settings)
    names = {"username": "USERNAME", "password": "PASSWORD"}
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.value("mlflow", "mlflow-admin", "session-key"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **{f"MLFLOW_AUTH_ADMIN_{n}": secrets.value("mlflow", "mlflow-admin", key) for key, n in names.items()},
    }
    server = mlflow_servers.mlflow(folder, f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts", environment)
    server.command += ["--app-name", "basic-auth"]
    server.start()
    try:
        secrets.run("create_user", ("localhost:5000", f"localhost:{server.port}"), **environment)
        yield secrets, server.uri
    finally:
        server.stop()


def test_the_store_opens_with_the_key_of_the_namespace_that_runs_live_in(made: tuple[Secrets, str]) -> None:
    secrets, _ = made
    assert secrets.value("kubeflow", "object-store", "accesskey") == "the accesskey"
    assert secrets.value("kubeflow", "object-store", "endpoint") == "http://seaweedfs.kubeflow:9000"
    assert secrets.value("mlflow", "object-store", "secretkey") == "the secretkey"


@pytest.fixture
def as_a_run(made: tuple[Secrets, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with what a run is given in the environment."""
    secrets, uri = made
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", secrets.value("kubeflow", "mlflow", "username"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secrets.value("kubeflow", "mlflow", "password"))
    return uri


def test_the_user_of_the_runs_can_do_all_that_a_run_does(as_a_run: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(as_a_run)
    experiment = client.create_experiment("multimodal-gemma")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "pope", 0.9)
    client.log_text(run.info.run_id, "a model", "model/card.md")
    client.create_registered_model("multimodal-gemma")
    source = f"runs:/{run.info.run_id}/model"
    version = client.create_model_version("multimodal-gemma", source, run.info.run_id).version
    client.set_registered_model_alias("multimodal-gemma", "champion", version)
    client.set_model_version_tag("multimodal-gemma", version, "gate", "passed")
    champion = client.get_model_version_by_alias("multimodal-gemma", "champion")
    assert (champion.version, champion.tags) == (version, {"gate": "passed"})


def test_the_user_of_the_runs_is_no_administrator(as_a_run: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    users = get_app_client("basic-auth", as_a_run)
    with pytest.raises(MlflowException, match="403"):
        users.create_user("another", "a password of some length")
    with pytest.raises(MlflowException, match="403"):
        users.update_user_admin("runs", True)
