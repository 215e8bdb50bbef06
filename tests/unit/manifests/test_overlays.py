"""The overlays differ in what a laptop and a GPU cluster differ in, and fit what the pipelines ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodal_gemma import __version__
from tests.unit.manifests.cluster_policies import selects
from tests.unit.manifests.pods import SOMEBODY_ELSES, Pod, made_by_kubeflow, pods
from tests.unit.manifests.rendering import CLUSTERS, MANIFESTS, cluster, the

REPOSITORY = Path(__file__).parents[3]


def _rank(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [pod.spec for pod in pods(objects) if pod.name == "multimodal-gemma/node"]
    assert found is not None
    return found


def test_a_laptop_is_never_asked_for_an_accelerator() -> None:
    assert "nvidia.com/gpu" not in yaml.safe_dump(cluster("kind"))
    assert "cloud.google.com" not in yaml.safe_dump(cluster("kind"))


def test_a_laptop_has_room_for_what_always_runs() -> None:
    always = [pod for pod in pods(cluster("kind")) if pod.namespace == "mlflow"]
    requests = [container["resources"]["requests"] for pod in always for container in pod.containers]
    assert sum(int(one["cpu"].removesuffix("m")) for one in requests) <= 250  # thousandths of a core
    assert sum(int(one["memory"].removesuffix("Mi")) for one in requests) <= 1024


def test_a_rank_lands_on_an_a100_spot_or_not() -> None:
    rank = _rank(cluster("gke-a100"))
    assert rank["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    taints = {(taint["key"], taint["value"], taint["effect"]) for taint in rank["tolerations"]}
    # GKE taints every GPU node with the first; the spot pool of docs/cluster-gke.md is made with the second.
    assert taints == {("nvidia.com/gpu", "present", "NoSchedule"), ("cloud.google.com/gke-spot", "true", "NoSchedule")}
    resources = rank["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def test_a_queue_counts_all_that_a_rank_asks_for() -> None:
    """Kueue admits nothing that asks for a resource which the queue does not cover."""
    for name in ("kind", "gke-a100"):
        objects = cluster(name)
        (group,) = the(objects, "ClusterQueue", "multimodal-gemma")["spec"]["resourceGroups"]
        assert set(_rank(objects)["containers"][0]["resources"]["requests"]) <= set(group["coveredResources"])
        for flavor in group["flavors"]:
            assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]


def test_a_queue_of_spot_nodes_asks_for_labels_that_gke_sets() -> None:
    labels = the(cluster("gke-a100"), "ResourceFlavor", "multimodal-gemma-a100-spot")["spec"]["nodeLabels"]
    assert labels == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", "cloud.google.com/gke-spot": "true"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_wide_objects_have_no_namespace(name: str) -> None:
    wide = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "ClusterQueue", "ResourceFlavor"}
    for one in cluster(name):
        assert ("namespace" in one["metadata"]) != (one["kind"] in wide), one["metadata"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_trainer_runs_the_version_of_this_package(name: str) -> None:
    image = _rank(cluster(name))["containers"][0]["image"]
    assert image.rpartition(":")[2] == __version__


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_secret_that_is_read_is_described(name: str) -> None:
    """A Secret is made by hand, once: manifests/secrets.md says where, with which keys and by which command."""
    described = {
        (namespace, secret, key)
        for line in (MANIFESTS / "secrets.md").read_text().splitlines()
        if (row := re.match(r"\| ([^|]+) \| `([^`]+)` \| ([^|]+) \|", line))
        for namespace in re.findall(r"`([^`]+)`", row[1])
        for secret in [row[2]]
        for key in re.findall(r"`([^`]+)`", row[3])
    }
    read = {
        (pod.namespace, reference["name"], reference["key"])
        for pod in pods(cluster(name))
        for container in pod.containers
        for variable in container.get("env", [])
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    assert read
    assert read <= described, read - described


def test_a_rank_may_write_what_its_scratch_volume_holds() -> None:
    """The volume counts towards the container's ephemeral-storage: below it, a full volume is an evicted pod."""
    for name in CLUSTERS:
        rank = _rank(cluster(name))
        (scratch,) = [volume["emptyDir"]["sizeLimit"] for volume in rank["volumes"] if volume["name"] == "scratch"]
        limit = rank["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert int(limit.removesuffix("Gi")) > int(scratch.removesuffix("Gi")), name


def test_every_task_of_the_compiled_pipelines_carries_the_label_that_policies_select() -> None:
    (label,) = the(cluster("kind"), "NetworkPolicy", "runs-default-deny")["spec"]["podSelector"]["matchLabels"].items()
    for path in (REPOSITORY / "pipelines" / "compiled").glob("*.yaml"):
        spec, platform = yaml.safe_load_all(path.read_text())
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for executor in spec["deploymentSpec"]["executors"]:
            labels = executors.get(executor, {}).get("podMetadata", {}).get("labels", {})
            assert label in labels.items(), f"{path.name}: {executor}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_mlflow_answers_our_runs_and_nobody_elses(name: str) -> None:
    objects = cluster(name)
    (rule,) = the(objects, "NetworkPolicy", "mlflow-clients")["spec"]["ingress"]

    def admitted(pod: Pod) -> bool:
        names = {"kubernetes.io/metadata.name": pod.namespace}
        return any(
            selects(peer["namespaceSelector"], names) and selects(peer["podSelector"], pod.labels)
            for peer in rule["from"]
        )

    (task, *_) = made_by_kubeflow(objects)
    assert admitted(task)
    assert all(admitted(pod) for pod in pods(objects) if pod.name == "multimodal-gemma/node")
    assert not admitted(SOMEBODY_ELSES)
    assert not admitted(Pod("the same label elsewhere", "default", task.labels, None))


def test_no_secret_is_committed() -> None:
    for path in MANIFESTS.rglob("*"):
        if path.is_file():
            assert not re.search(r"^kind: Secret$|secretGenerator", path.read_text(), re.MULTILINE), path


def test_mlflow_answers_to_the_name_that_runs_call_it_by() -> None:
    server = the(cluster("kind"), "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = [one for one in server["args"] if one.startswith("--allowed-hosts=")]
    (uri,) = [
        one["value"] for one in _rank(cluster("kind"))["containers"][0]["env"] if one["name"] == "MLFLOW_TRACKING_URI"
    ]
    assert uri.removeprefix("http://") in allowed.removeprefix("--allowed-hosts=").split(",")
