"""The pods that come out of a cluster's objects, and those that Kubeflow makes beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]


@dataclasses.dataclass
class Pod:
    """A pod.

    Attributes:
        name: of what makes it.
        namespace: where it lives.
        labels: its own.
        spec: its PodSpec; None for a pod that Kubeflow makes, whose spec is not written here.
        ports: that it listens on.
    """

    name: str
    namespace: str
    labels: dict[str, str]
    spec: Object | None
    ports: set[int] = dataclasses.field(default_factory=set)

    @property
    def containers(self) -> list[Object]:
        """All containers of the spec."""
        spec = self.spec or {}
        return [*spec.get("initContainers", []), *spec.get("containers", [])]


# Labels and ports as in the manifests of Kubeflow Pipelines 2.17; Kubernetes' DNS as everywhere.
PLATFORM = (
    Pod("ml-pipeline", "kubeflow", {"app": "ml-pipeline"}, None, {8887, 8888}),
    Pod("metadata-grpc", "kubeflow", {"component": "metadata-grpc-server"}, None, {8080}),
    Pod("seaweedfs", "kubeflow", {"app": "seaweedfs"}, None, {8333, 8111, 8888, 9333}),
    Pod("dns", "kube-system", {"k8s-app": "kube-dns"}, None, {53}),
    # manifests/base/manager/manager.yaml of Kubeflow Trainer 2.2.0
    Pod(
        "trainer",
        "kubeflow-system",
        {
            "app.kubernetes.io/name": "trainer",
            "app.kubernetes.io/component": "manager",
            "app.kubernetes.io/part-of": "kubeflow",
        },
        None,
        {8081, 8443, 9443, 10443},
    ),
)


def pods(objects: list[Object]) -> list[Pod]:
    """Return the pods whose spec the objects hold."""
    return list(_pods(objects))


# What Kubeflow Pipelines puts on every pod of every run; this project's pipelines add their own label to their tasks.
RUN = {"pipelines.kubeflow.org/v2_component": "true"}
TASK = {**RUN, "app.kubernetes.io/part-of": "multimodal-gemma"}
SOMEBODY_ELSES = Pod("somebody else's run", "kubeflow", RUN, None)


def made_by_kubeflow(objects: list[Object]) -> list[Pod]:
    """Return the pods of pipeline runs: tasks, and in a namespace of the project's own the platform's drivers too."""
    (home,) = [
        one["metadata"]["namespace"]
        for one in objects
        if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == "multimodal-gemma"
    ]
    drivers = [Pod("driver", home, RUN, None)] if home != SOMEBODY_ELSES.namespace else []
    return [Pod("run", home, TASK, None), *drivers]


def _pods(objects: list[Object]) -> Iterator[Pod]:
    runtimes = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ServingRuntime"}
    for one in objects:
        name, namespace = one["metadata"]["name"], one["metadata"].get("namespace", "")
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield _pod(name, namespace, one["spec"]["template"])
        elif one["kind"] == "TrainingRuntime":
            for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
                yield _pod(f"{name}/{job['name']}", namespace, job["template"]["spec"]["template"])
        elif one["kind"] == "InferenceService":
            # KServe lays the predictor over its runtime, and labels the pod with the service's name.
            predictor = {key: value for key, value in one["spec"]["predictor"].items() if key != "model"}
            spec = {**runtimes[one["spec"]["predictor"]["model"]["runtime"]]["spec"], **predictor}
            labels = {"serving.kserve.io/inferenceservice": name}
            yield _pod(name, namespace, {"metadata": {"labels": labels}, "spec": spec})


def _pod(name: str, namespace: str, template: Object) -> Pod:
    spec = template["spec"]
    ports = {port["containerPort"] for container in spec["containers"] for port in container.get("ports", [])}
    return Pod(name, namespace, template.get("metadata", {}).get("labels", {}), spec, ports)
