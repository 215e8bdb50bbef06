"""Who gets in and who does not: wrong Secrets are told at the beginning of a run, and foreign pods stay outside."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.machines import CHECKPOINTS, REPOSITORY, SMALL, Cluster, Ended, Runs, until

NAMESPACE = "mmgemma-scenarios"  # of the foreign pods
PROBE = """
import json, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
    print("reached")
except OSError as error:
    print("refused" if not isinstance(error, socket.gaierror) else "unknown name")
"""


@pytest.fixture
def secret(cluster: Cluster) -> Iterator[str]:
    """The name of a Secret that is gone after the test."""
    name = f"scenarios-{int(time.time())}"
    yield name
    cluster.kubectl("-n", cluster.namespace, "delete", "secret", name, "--ignore-not-found")


def _told_at_the_beginning(ended: Ended, *words: str) -> None:
    assert ended.code == 1
    assert ended.states["preflight"] == "failed"
    assert ended.states["download-dataset"] not in ("succeeded", "running", "failed")
    for word in words:
        assert word in ended.reasons, ended.reasons


@pytest.mark.runs(1)
def test_a_secret_that_is_not_there_is_told(runs: Runs, secret: str) -> None:
    _told_at_the_beginning(runs.run(*SMALL, params=(f"secret_registry={secret}",)), "MLflow", "401")


@pytest.mark.runs(1)
def test_a_wrong_password_of_mlflow_is_told(cluster: Cluster, runs: Runs, secret: str) -> None:
    values = ("--from-literal=username=runs", "--from-literal=password=not the password")
    cluster.kubectl("-n", cluster.namespace, "create", "secret", "generic", secret, *values)
    _told_at_the_beginning(runs.run(*SMALL, params=(f"secret_registry={secret}",)), "MLflow", "401")


@pytest.mark.runs(1)
def test_a_wrong_key_of_the_store_is_told(cluster: Cluster, runs: Runs, secret: str) -> None:
    good = cluster.secret(cluster.namespace, "object-store")
    assert good is not None
    values = [f"--from-literal={key}={'wrong' if key == 'secretkey' else value}" for key, value in good.items()]
    cluster.kubectl("-n", cluster.namespace, "create", "secret", "generic", secret, *values)
    _told_at_the_beginning(runs.run(*CHECKPOINTS, params=(f"secret_store={secret}",)), "s3://")


@pytest.mark.runs(1)
def test_an_mlflow_that_is_down_is_told(cluster: Cluster, runs: Runs) -> None:
    with cluster.without_mlflow():
        _told_at_the_beginning(runs.run(*SMALL), "MLflow")


@pytest.fixture
def foreign(cluster: Cluster) -> Iterator[str]:
    """A namespace that has nothing to do with us, with a pod `client` and a pod `server` behind a Service."""
    kubectl = cluster.kubectl
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / "compiled" / "training.yaml").read_text()))
    image = spec["deploymentSpec"]["executors"]["exec-download-dataset"]["container"]["image"]
    kubectl("create", "namespace", NAMESPACE, check=False)
    try:
        for name, command in (("client", ["sleep", "3600"]), ("server", ["python3", "-m", "http.server", "8000"])):
            kubectl("apply", "-f", "-", given=json.dumps(_pod(name, image, command)))
        kubectl("-n", NAMESPACE, "expose", "pod", "server", "--port=8000", check=False)
        kubectl("-n", NAMESPACE, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=10m", seconds=660)
        yield NAMESPACE
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _pod(name: str, image: str, command: list[str]) -> dict[str, object]:
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    resources = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "256Mi"}}
    container = {"name": "main", "image": image, "command": command}
    container |= {"securityContext": security, "resources": resources}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"scenario": name}},
        "spec": {"containers": [container], "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1},
    }


def test_a_foreign_pod_reaches_neither_mlflow_nor_its_database(cluster: Cluster, foreign: str) -> None:
    def probe(host: str, port: int) -> str:
        command = ("exec", "client", "--", "python3", "-c", PROBE, host, str(port))
        return cluster.kubectl("-n", foreign, *command).strip()

    until("the foreign pods to reach each other", lambda: probe(f"server.{foreign}", 8000) == "reached", 3)
    closed = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": foreign},
        "spec": {"podSelector": {"matchLabels": {"scenario": "server"}}, "policyTypes": ["Ingress"]},
    }
    cluster.kubectl("apply", "-f", "-", given=json.dumps(closed))
    try:
        until("a policy to be enforced", lambda: probe(f"server.{foreign}", 8000) != "reached", 2)
    except AssertionError:
        pytest.skip("this cluster does not enforce network policies")
    assert probe("mlflow.mlflow", 5000) == "refused"
    assert probe("mlflow-database.mlflow", 5432) == "refused"
