"""What the platform does with a run: which lost pods it tries again, how much its store holds, who trains for it."""

from __future__ import annotations

from typing import Any

from multimodal_gemma.cluster.kube.client import RUNTIMES, Namespace
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import Needs
from multimodal_gemma.cluster.trainjob.spec import scratch

_TRAINER = ("trainer.kubeflow.org", "v1alpha1")
_KUEUE = "kueue.x-k8s.io"
_PLATFORM = "kubeflow"  # the namespace of Kubeflow Pipelines itself
_CONFIG_MAPS = "/api/v1/namespaces/{namespace}/configmaps"
_CLAIMS = f"/api/v1/namespaces/{_PLATFORM}/persistentvolumeclaims"
_CONTROLLER, _LAUNCHER = "workflow-controller-configmap", "kfp-launcher"
_CLAIM = "seaweedfs-pvc"  # of the store that Kubeflow Pipelines 2.17 brings
# By Argo's retryPolicy (https://argo-workflows.readthedocs.io/en/latest/retries/). A pod that was deleted is an error;
# one that ended badly, was evicted or went with its node is a failure, and so is every mistake of a user.
_REPEATED = {
    "OnError": "a task whose pod was deleted; not one whose pod failed, was evicted or went with its node",
    "OnFailure": "a task whose pod failed, was evicted or went with its node; not one whose pod was deleted",
    "OnTransientError": "a task whose pod failed with an error that Argo knows as passing",
    "Always": "a task whose pod was lost in any way, or failed",
}


def retries(cluster: Namespace, needs: Needs) -> Finding:
    """Say which lost pods the platform tries again, as far as its controller's ConfigMap may be read."""
    import yaml

    check = "retries"
    try:
        found = cluster.get(_CONFIG_MAPS.format(namespace=_PLATFORM), _CONTROLLER)
    except Refused as refused:
        return unknown(check, f"what this platform tries again cannot be seen ({refused.message})")
    if found is None:
        return unknown(check, f"what this platform tries again cannot be seen: {_PLATFORM} has no {_CONTROLLER}")
    data = found.get("data") or {}
    try:
        defaults = yaml.safe_load(data.get("workflowDefaults") or "") or (
            yaml.safe_load(data.get("config") or "") or {}
        ).get("workflowDefaults", {})
        policy = _at(defaults, "spec", "templateDefaults", "retryStrategy", "retryPolicy")
    except (yaml.YAMLError, AttributeError):
        return unknown(check, f"{_CONTROLLER} of {_PLATFORM} cannot be understood")
    words = _REPEATED.get(policy or "OnFailure", f"by a policy that is not known here, {policy}")
    return ok(check, f"this platform tries again {words}; what fails inside a pod is tried again there")


def store(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Is the claim of the platform's own store large enough for the artifacts of a run?"""
    from kubernetes.utils.quantity import parse_quantity

    check = "store"
    if not needs.store:
        return []
    try:
        launcher = cluster.get(_CONFIG_MAPS, _LAUNCHER) or {}
        root = (launcher.get("data") or {}).get("defaultPipelineRoot") or "minio://"
        if not root.startswith("minio://"):
            return [unknown(check, f"artifacts go to {root}, whose room cannot be seen from here")]
        claim = cluster.get(_CLAIMS, _CLAIM)
    except Refused as refused:
        return [unknown(check, f"the room of the platform's store cannot be seen ({refused.message})")]
    if claim is None:
        return [unknown(check, f"the room of the platform's store cannot be seen: {_PLATFORM} has no claim {_CLAIM}")]
    size = _at(claim, "status", "capacity", "storage") or _at(claim, "spec", "resources", "requests", "storage") or "0"
    if parse_quantity(size) < parse_quantity(needs.store):
        return [
            failed(
                check,
                f"the platform's store has {size} in all (claim {_CLAIM}), and a run of this recipe puts {needs.store} "
                "there",
                "Enlarge it (manifests/platform/store), or lower data.limit; mmgemma plan has the arithmetic.",
            )
        ]
    return [ok(check, f"the claim {_CLAIM} has {size}, a run takes {needs.store}; what others use is not counted")]


def trainer(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Look at Kubeflow Trainer where train-model hands its work to it, and at the queue where there is one."""
    if not needs.train_job:
        return []
    try:
        found = [_served(cluster)]
        if found[0].state == "ok" and needs.runtime:
            found.append(_runtime(cluster, needs))
        if needs.queue:
            found.append(_queue(cluster, needs))
    except Refused as refused:
        return [unknown("trainer", f"it cannot be looked at ({refused.message})")]
    return found


def _served(cluster: Namespace) -> Finding:
    check, (group, version) = "trainer", _TRAINER
    known = cluster.get("/apis", group)
    if known is None:
        return failed(check, "Kubeflow Trainer is not installed", "Install 2.2 or newer, or set training.nodes=1.")
    versions = [item["version"] for item in known.get("versions") or []]
    if version not in versions:
        return failed(
            check,
            f"the cluster serves TrainJob in {', '.join(versions) or 'no version'}, and this project speaks {version}",
            "Install Kubeflow Trainer 2.2 or newer.",
        )
    return ok(check, f"Kubeflow Trainer serves {group}/{version}")


def _runtime(cluster: Namespace, needs: Needs) -> Finding:
    from kubernetes.utils.quantity import parse_quantity

    check = f"runtime {needs.runtime}"
    found = cluster.get(RUNTIMES, needs.runtime)
    if found is None:
        return failed(
            check,
            f"namespace {needs.namespace} has no TrainingRuntime {needs.runtime}",
            "Apply it: kubectl apply -k manifests/overlays/…/trainer.",
        )
    room = needs.scratch_given or scratch(found)
    if needs.scratch and room and parse_quantity(room) < parse_quantity(needs.scratch):
        return failed(
            check,
            f"a node's scratch volume has {room}, and this training writes up to {needs.scratch} there",
            f"Set nodes.scratch={needs.scratch}, or training.feature_cache=none, which computes features anew.",
        )
    return ok(check, "it is there")


def _queue(cluster: Namespace, needs: Needs) -> Finding:
    check = f"queue {needs.queue}"
    known = cluster.get("/apis", _KUEUE)
    if known is None:
        return failed(check, "Kueue is not installed", "Install it, or leave the queue's name empty.")
    version = (known.get("preferredVersion") or {}).get("version") or known["versions"][0]["version"]
    if cluster.get(f"/apis/{_KUEUE}/{version}/namespaces/{{namespace}}/localqueues", needs.queue) is None:
        return failed(
            check,
            f"namespace {needs.namespace} has no LocalQueue {needs.queue}",
            "Apply it: kubectl apply -k manifests/overlays/…/kueue, or name another.",
        )
    return ok(check, "it is there")


def _at(found: Any, *keys: str) -> Any:
    """Return what lies below keys, one below the other; None where something is absent."""
    for key in keys:
        found = (found or {}).get(key)
    return found
