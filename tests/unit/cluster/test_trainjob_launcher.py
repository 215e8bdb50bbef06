"""The process that submits a TrainJob may be cancelled or killed: nothing is left, or all is found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from multimodal_gemma import config, manifest
from multimodal_gemma.cluster.kube.client import WORKFLOWS as _WORKFLOWS
from multimodal_gemma.stages import run_report, train_nodes
from tests.servers.kubernetes_api import KubernetesServer
from tests.servers.kubernetes_objects import Place
from tests.servers.train_job_controller import JOBS, PODS, Controller
from tests.unit.training.test_store import bucket, names  # noqa: F401

WORKFLOWS = _WORKFLOWS.format(namespace="ml")
LAUNCHER = """
import sys
from pathlib import Path
from multimodal_gemma import config
from multimodal_gemma.stages import train_nodes
from multimodal_gemma.stages.component import guarded
folder = Path(sys.argv[1])
with guarded():
    settings = config.compose("sample", ["training.nodes=2", "nodes.work_uri=s3://spot/mm"])
    train_nodes.run(settings, folder / "data", folder / "models", folder / "out", {"a": "b"}, run_id="run-7")
"""


def artifact(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(kind.encode() * 1000)
    manifest.write(folder, kind, config={})
    return folder


class Launcher:
    """The launcher as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        source = str(Path(train_nodes.__file__).parents[2])
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(folder)],
                env={**os.environ, "PYTHONPATH": source},
                stderr=stream,
            )

    def wait_for(self, text: str) -> None:
        limit = time.monotonic() + 30
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)


def right_of(method: str, path: str) -> tuple[str, str, str] | None:
    """Return verb, group and resource of a request."""
    place = Place.of(path.partition("?")[0])
    if place is None:
        return None
    seen = "get" if place.name else "watch" if "watch=true" in path else "list"
    verb = {"POST": "create", "DELETE": "delete"}.get(method, seen)
    return verb, place.group, f"{place.plural}/{place.subresource}".rstrip("/")


def granted() -> set[tuple[str, str, str]]:
    """Return what the Roles of the manifests let a run do."""
    manifests = Path(__file__).parents[3] / "manifests"
    return {
        (verb, group, resource)
        for name in ("trainer/rbac.yaml", "base/runs/rbac.yaml")
        for item in yaml.safe_load_all((manifests / name).read_text())
        if item["kind"] == "Role"
        for rule in item["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    with KubernetesServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


def test_a_killed_launcher_is_followed_by_one_that_finds_the_job_and_a_cancelled_one_leaves_nothing(
    server,
    bucket,  # noqa: F811
    tmp_path,
):
    controller = Controller(server)
    artifact(tmp_path / "data", "processed-dataset")
    artifact(tmp_path / "models", "base-models")
    first = Launcher(tmp_path)
    try:
        first.wait_for("submitted TrainJob mmgemma-")
        controller.running(0)
        controller.running(1)
        first.end(signal.SIGKILL)
        assert server.names(JOBS) == [controller.name]
        assert len(server.names(PODS)) == 2  # they train on
        sent = {item.object_name: item.last_modified for item in bucket.list_objects("spot", "mm/artifacts", True)}
        second = Launcher(tmp_path)
        second.wait_for("2 of 2 nodes run")
    finally:
        first.process.kill()
    assert f"found TrainJob {controller.name} again" in second.log.read_text()
    assert second.log.read_text().count("all there in s3://spot/mm/artifacts/") == 2
    assert sent == {item.object_name: item.last_modified for item in bucket.list_objects("spot", "mm/artifacts", True)}
    assert second.end(signal.SIGTERM) == 75  # as a run is terminated, or a node taken away
    assert (server.names(JOBS), server.names(PODS)) == ([], [])
    assert "and its pods are deleted" in second.log.read_text()
    assert {asked for request in server.requests if (asked := right_of(*request))} <= granted()


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ({"activeDeadlineSeconds": 604_800}, True),  # its node is drained: the task's retry finds the TrainJob
        ({"activeDeadlineSeconds": 0}, False),  # what TerminateWorkflow of Kubeflow Pipelines sets
        ({"shutdown": "Stop"}, False),  # what Argo's own command sets
        (None, False),  # the Workflow was deleted
        ("forbidden", True),  # the run's report deletes what it leaves
    ],
)
def test_only_a_run_that_was_stopped_takes_its_training_along(
    server,
    bucket,  # noqa: F811
    tmp_path,
    shared,
    monkeypatch,
    spec,
    left,
):
    """The pod is a real one of a run; SIGTERM reaches it when it is lost and when its run is stopped."""
    pod = json.loads((shared / "kfp-2.17/pod-failed.json").read_text())
    workflow = pod["metadata"]["ownerReferences"][0]
    monkeypatch.setenv("KFP_POD_NAME", "train-model-1")
    server.put(f"{PODS}/train-model-1", {"metadata": {"ownerReferences": [workflow]}, "spec": pod["spec"]})
    if spec is not None:
        server.put(f"{WORKFLOWS}/{workflow['name']}", {"spec": {} if spec == "forbidden" else spec})
    if spec == "forbidden":
        server.denied.add(("get", "argoproj.io", "workflows"))
    controller = Controller(server)
    artifact(tmp_path / "data", "processed-dataset")
    artifact(tmp_path / "models", "base-models")
    launcher = Launcher(tmp_path)
    try:
        launcher.wait_for("submitted TrainJob mmgemma-")
        controller.running(0)
        owner = controller.job()["metadata"]["ownerReferences"]
        assert owner == [{key: workflow[key] for key in ("apiVersion", "kind", "name", "uid")}]
        launcher.wait_for("1 of 2 nodes run")
        assert launcher.end(signal.SIGTERM) == 75
    finally:
        launcher.process.kill()
    assert server.names(JOBS) == ([controller.name] if left else [])
    assert ("trains on: another will find it" in launcher.log.read_text()) == left
    assert {asked for request in server.requests if (asked := right_of(*request))} <= granted()


def test_the_exit_handler_deletes_what_a_terminated_run_left(server, monkeypatch, caplog):
    controller = Controller(server)
    labels = {"multimodal-gemma/run": "0a1b-run"}
    server.put(f"{JOBS}/mmgemma-1", {"metadata": {"labels": labels}, "spec": {}})
    controller.running(0)
    monkeypatch.setattr("multimodal_gemma.cluster.kube.client.in_cluster", lambda: True)
    monkeypatch.setattr("multimodal_gemma.cluster.trainjob.job.here", _through(server))
    assert run_report.clean_up("another-run") == []
    assert run_report.clean_up("0a1b-run") == ["mmgemma-1"]
    assert (server.names(JOBS), server.names(PODS)) == ([], [])


def test_the_exit_handler_reports_even_where_it_may_not_delete(server, monkeypatch, caplog):
    monkeypatch.setattr("multimodal_gemma.cluster.trainjob.job.here", _through(server))
    assert run_report.clean_up("run") == []  # no cluster: nothing to ask
    monkeypatch.setattr("multimodal_gemma.cluster.kube.client.in_cluster", lambda: True)
    server.denied.add(("list", "trainer.kubeflow.org", "trainjobs"))
    caplog.set_level("INFO")
    assert run_report.clean_up("run") == []  # no Kubeflow Trainer, or no right to its objects: no TrainJob either
    assert not caplog.records
    server.tokens = {"other"}
    assert run_report.clean_up("run") == []


def _through(server: KubernetesServer):
    from multimodal_gemma.cluster.kube import client
    from multimodal_gemma.cluster.kube.client import Namespace

    path = Path(os.environ["KUBECONFIG"])
    return lambda: Namespace(lambda: client.connect(path), "ml", patience=0.1, pause=0.01)


def test_several_nodes_without_a_place_to_meet_are_refused(tmp_path):
    from multimodal_gemma.errors import InputError

    for uri in ("", "/some/folder", "s3://"):
        settings = config.compose("sample", ["training.nodes=4", f"nodes.work_uri='{uri}'"])
        with pytest.raises(InputError, match=r"training.nodes=4 needs .* Set nodes.work_uri=s3://BUCKET/PREFIX"):
            train_nodes.run(settings, tmp_path, tmp_path, tmp_path, {}, run_id="")
