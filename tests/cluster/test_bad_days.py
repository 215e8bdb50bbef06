"""What is promised of a run when something goes wrong: tried again where it helps, continued, and said why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.machines import LONG, NODES, PRETENDED, REPOSITORY, SELECTOR, TOO_LARGE, Cluster, Runs, fresh, until

CHILD = "multimodal_gemma.stages.tries"  # the process in which a task's work is done
CHECKPOINTED = (
    r"train: ([4-9]\d\d|\d,\d{3}) of [\d,]+ samples"  # each pass over LONG's 320 samples ends with a checkpoint
)
KILL = """
import os, pathlib, signal, sys
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (folder / "cmdline").read_bytes().split(b"\\0")
    except OSError:
        continue
    if sys.argv[1].encode() in words and int(folder.name) != os.getpid():
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed", folder.name)
"""


@pytest.mark.runs(1)
def test_a_killed_python_is_tried_again_in_its_pod_and_continues(cluster: Cluster, runs: Runs) -> None:
    run = runs.start(*LONG, fresh())
    pod = runs.at_work(run, "train-model", CHECKPOINTED)
    inside = ("-n", cluster.namespace, "exec", pod, "-c", "main", "--")
    assert "killed" in cluster.kubectl(*inside, "python3", "-c", KILL, CHILD)
    ended = runs.follow(run)
    assert ended.code == 0, ended.reasons
    said = runs.log(pod)
    assert re.search(r"try 2 of \d", said)
    assert "continuing from the checkpoint of step" in said.partition("try 2 of")[2]
    assert len(runs.pods(run, "train-model")) == 1


@pytest.mark.runs(1)
def test_a_deleted_pod_is_tried_again_in_another(cluster: Cluster, runs: Runs) -> None:
    run = runs.start(*LONG, fresh())
    pod = runs.at_work(run, "train-model")
    cluster.kubectl("-n", cluster.namespace, "delete", "pod", pod, "--wait=false")
    ended = runs.follow(run)
    assert ended.code == 0, ended.reasons
    assert ended.task("train-model")["tries"] == 2


@pytest.mark.runs(1)
def test_a_pod_that_no_node_can_take_is_refused_with_the_reason(cluster: Cluster, runs: Runs) -> None:
    if cluster.kubectl.found("configmap", "cluster-autoscaler-status", "kube-system"):
        pytest.skip("an autoscaler may add a node of any size here")
    ended = runs.run(*TOO_LARGE)
    assert ended.code == 1
    assert ended.states["preflight"] == "failed"
    assert ended.states["train-model"] not in ("running", "succeeded", "failed")
    assert re.search(r"\bnode", ended.reasons)
    assert "4096" in ended.reasons


@pytest.fixture
def pretended(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """A node that says it has an accelerator, with a label and a taint of its own."""
    kubectl = cluster.kubectl
    if not kubectl.may("patch", "nodes", "--subresource=status") or not kubectl.may("patch", "nodes"):
        pytest.skip("we may not change a node of this cluster")
    nodes = [node for node in kubectl.listed("nodes") if not node["spec"].get("unschedulable")]
    if any("nvidia.com/gpu" in node["status"]["allocatable"] for node in nodes):
        pytest.skip("this cluster has accelerators of its own")
    nodes = [n for n in nodes if not any(t["effect"] != "PreferNoSchedule" for t in n["spec"].get("taints", []))]
    assert nodes, "every node of this cluster has a taint"
    name = nodes[-1]["metadata"]["name"]
    # The others' pods need a place: the only node of a cluster is only made unpopular.
    effect = "NoSchedule" if len(nodes) > 1 else "PreferNoSchedule"
    path = "/status/capacity/nvidia.com~1gpu"
    _patch_status(cluster, name, {"op": "add", "path": path, "value": "1"})
    try:
        kubectl("label", "node", name, f"{SELECTOR}=pretended")
        kubectl("taint", "node", name, f"{SELECTOR}=pretended:{effect}")

        def ready() -> dict[str, Any] | None:
            node = kubectl.found("node", name)
            return node if node and "nvidia.com/gpu" in node["status"]["allocatable"] else None

        yield until(f"node {name} to say that it has an accelerator", ready, 5)
    finally:
        kubectl("taint", "node", name, f"{SELECTOR}-", check=False)
        kubectl("label", "node", name, f"{SELECTOR}-", check=False)
        for part in ("capacity", "allocatable"):
            _patch_status(cluster, name, {"op": "remove", "path": f"/status/{part}/nvidia.com~1gpu"}, check=False)


def _patch_status(cluster: Cluster, node: str, change: dict[str, str], *, check: bool = True) -> None:
    arguments = ("--subresource=status", "--type=json", "-p", json.dumps([change]))
    cluster.kubectl("patch", "node", node, *arguments, check=check)


@pytest.mark.runs(1)
def test_training_goes_to_the_accelerator_that_was_asked_for(runs: Runs, pretended: dict[str, Any]) -> None:
    """Nothing is behind it: the pod arrives there with selector and toleration, and says that it finds no GPU."""
    ended = runs.run(*PRETENDED, params=("hardware=custom",))
    pod = runs.pods(str(ended.facts["run_id"]), "train-model")[0]
    assert pod["spec"]["nodeName"] == pretended["metadata"]["name"]
    assert pod["spec"]["nodeSelector"] == {SELECTOR: "pretended"}
    assert {"key": SELECTOR, "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    (main,) = [container for container in pod["spec"]["containers"] if container["name"] == "main"]
    assert main["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (ended.code, ended.states["train-model"]) == (1, "failed")
    assert re.search(r"cuda|GPU|accelerator", ended.task("train-model")["reason"] or ended.reasons, re.IGNORECASE)


@pytest.mark.runs(1)
def test_a_stopped_run_is_called_stopped_and_leaves_no_pod_at_work(runs: Runs) -> None:
    run = runs.start(*LONG, fresh())
    runs.at_work(run, "train-model")
    runs.stop(run)
    ended = runs.follow(run)
    assert (ended.code, ended.facts["outcome"]) == (1, "stopped"), ended.reasons

    def still() -> bool:
        return not {pod["status"].get("phase") for pod in runs.pods(run)} & {"Running", "Pending"}

    until("the pods of the stopped run to end", still, 10)


@pytest.mark.runs(2)
def test_a_run_that_failed_goes_on_where_it_failed(cluster: Cluster, runs: Runs) -> None:
    run = runs.start(*LONG, fresh())
    runs.at_work(run, "train-model")
    with cluster.without_mlflow():
        failed = runs.follow(run)
    assert failed.code == 1
    assert "MLflow" in failed.reasons
    before = {pod["metadata"]["uid"] for pod in runs.pods(run, "preprocess-dataset")}
    ended = runs.retry(run)
    assert ended.code == 0, ended.reasons
    assert {pod["metadata"]["uid"] for pod in runs.pods(run, "preprocess-dataset")} == before


@pytest.mark.runs(2)
def test_two_nodes_train_together_and_outlive_the_loss_of_one(cluster: Cluster, runs: Runs) -> None:
    if not cluster.has_trainer:
        pytest.skip("this cluster has no Kubeflow Trainer")
    kubectl = cluster.kubectl
    kubectl("apply", "-k", str(REPOSITORY / "manifests" / "overlays" / cluster.overlay / "trainer"))
    run = runs.start(*NODES, fresh(), f"nodes.cpu={int(float(cluster.cpu) * 250)}m")
    waiting = runs.at_work(run, "train-model", r"train: .*loss ")
    (job,) = set(re.findall(r"submitted TrainJob ([\w-]+)", runs.log(waiting)))
    until("a checkpoint", lambda: re.search(CHECKPOINTED, runs.log(waiting)), 20)
    ours = "app.kubernetes.io/name=multimodal-gemma-trainer"
    pods = [pod["metadata"]["name"] for pod in kubectl.listed("pods", "-n", cluster.namespace, "-l", ours)]
    pods = [name for name in pods if name.startswith(job)]
    assert len(pods) == 2
    kubectl("-n", cluster.namespace, "delete", "pod", pods[-1], "--wait=false")
    ended = runs.follow(run)
    assert ended.code == 0, ended.reasons
    said = runs.log(waiting)
    assert "begins again from its last checkpoint (restart 1)" in said
    assert "continuing from the checkpoint of step" in said
    assert not kubectl.found("trainjobs.trainer.kubeflow.org", job, cluster.namespace)
