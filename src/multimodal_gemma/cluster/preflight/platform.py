"""Are Kubeflow Trainer and Kueue there, in versions that a run can speak to, where it needs them?"""

from __future__ import annotations

from multimodal_gemma.cluster.kube.client import RUNTIMES, Namespace, Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import Needs

_TRAINER = ("trainer.kubeflow.org", "v1alpha1")
_KUEUE = "kueue.x-k8s.io"


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
    check = f"runtime {needs.runtime}"
    if cluster.get(RUNTIMES, needs.runtime) is None:
        return failed(
            check,
            f"namespace {needs.namespace} has no TrainingRuntime {needs.runtime}",
            "Apply it: kubectl apply -k manifests/overlays/…/trainer.",
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
