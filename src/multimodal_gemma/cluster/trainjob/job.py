"""One TrainJob: submitted or found again, followed, and never left behind.

Its name follows from the pipeline run and from what is trained, so a task that is retried asks for the same name: what
a lost predecessor has left running is followed on, what has failed is begun again. A run that was stopped takes its
TrainJob along; a pod that was only taken away does not.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.kube.client import PODS, RUNTIMES, TRAINJOBS, WORKFLOWS, Namespace
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.trainjob import spec
from multimodal_gemma.cluster.trainjob.follow import Follower
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import NodesConfig

Object = dict[str, Any]

_FINAL_SECONDS = 0.4  # of the 0.9 that a task has after SIGTERM: for finding out what it means
_GONE_SECONDS = 20.0  # a pod that is ended has half a minute, and its job has to go within that
_COPIED = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")  # no secrets
_BY_SECRET = {
    *_COPIED,
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}


def here() -> Namespace:
    """Return the namespace that this pod lives in, or that the kubeconfig's current context names.

    Raises:
        InputError: there is no cluster to speak to.
    """
    from multimodal_gemma.cluster.kube import client

    return Namespace(client.connect, client.current_namespace())


def available(namespace: Namespace, runtime: str) -> bool:
    """Whether a TrainJob can be made from a TrainingRuntime here; False where that may not be looked at."""
    try:
        return namespace.get(RUNTIMES, runtime) is not None
    except Refused:
        return False


def runtime(namespace: Namespace, name: str) -> Object:
    """Return the TrainingRuntime that TrainJobs are made from.

    Raises:
        InputError: the cluster has no Kubeflow Trainer of a version that is known here, no such runtime, or the run
            may not see it.
    """
    with _refusals(namespace):
        found = namespace.get(RUNTIMES, name)
    if found is None:
        raise InputError(
            f"cluster: namespace {namespace.name} has no TrainingRuntime {name} of trainer.kubeflow.org/v1alpha1. "
            "Install Kubeflow Trainer 2.2 or newer and apply manifests/trainer there, or name another with "
            "nodes.runtime."
        )
    return found


def surroundings(namespace: Namespace) -> spec.Surroundings:
    """Return what nodes share with this pod: image, and variables, those of Secrets by the Secrets' names.

    Outside of a pod the runtime says all of it.
    """
    from multimodal_gemma.cluster.kube import client

    plain = {name: os.environ[name] for name in _COPIED if _reachable(os.environ.get(name, ""))}
    name = os.environ.get("KFP_POD_NAME") or (os.environ.get("HOSTNAME") if client.in_cluster() else None)
    pod = None
    if name:
        with _refusals(namespace):
            pod = namespace.get(PODS, name)
    env, image, pull = {}, "", []
    workflow: Object = {}
    if pod is not None:
        containers = pod["spec"]["containers"]
        mine = next((one for one in containers if one["name"] == "main"), containers[0])
        image = str(mine.get("image") or "")
        owners = pod["metadata"].get("ownerReferences") or []
        owner: Object = next((one for one in owners if one["kind"] == "Workflow"), {})
        workflow = {key: owner[key] for key in ("apiVersion", "kind", "name", "uid") if key in owner}
        pull = [str(one["name"]) for one in pod["spec"].get("imagePullSecrets") or []]
        env = {
            one["name"]: {"name": one["name"], "valueFrom": {"secretKeyRef": one["valueFrom"]["secretKeyRef"]}}
            for one in mine.get("env") or []
            if one["name"] in _BY_SECRET and "secretKeyRef" in (one.get("valueFrom") or {})
        }
    for key, value in plain.items():
        env.setdefault(key, {"name": key, "value": value})
    return spec.Surroundings(image, list(env.values()), pull, workflow)


def build(namespace: Namespace, name: str, work: str, nodes: int, asked: NodesConfig, *, run_id: str) -> Object:
    """Return the TrainJob of a training, see `spec.build`."""
    return spec.build(
        name, work, nodes, asked, runtime(namespace, asked.runtime), surroundings(namespace), run_id=run_id
    )


def run(namespace: Namespace, job: Object, *, pause: float = 10.0) -> None:
    """Submit a TrainJob or find it again, follow it to its end, and delete it.

    Where this process is asked to end and the pipeline run goes on, the TrainJob trains on: the task's retry finds it.

    Args:
        namespace: where it lives.
        job: the TrainJob.
        pause: seconds between two looks at its log.

    Raises:
        InputError: it cannot be submitted, or it failed.
        SystemExit: this process was asked to end.
    """
    from multimodal_gemma.training.failures import Watch

    name, left = job["metadata"]["name"], False
    with Watch() as watch, _refusals(namespace):
        try:
            _submit(namespace, job)
            Follower(namespace, name, pause=pause).to_end()
        except SystemExit:
            with watch.deferred():
                left = _run_goes_on(namespace, job)
            raise
        finally:
            with watch.deferred():
                if left:
                    logs.get("train").info(f"this pod ends, and the TrainJob {name} trains on: another will find it")
                else:
                    delete(namespace, name)


def delete(namespace: Namespace, name: str) -> None:
    """Delete a TrainJob with its pods, and wait until it is gone."""
    with _refusals(namespace):
        if namespace.delete(TRAINJOBS, name):
            _wait_until_gone(namespace, name)
            logs.get("train").info(f"the TrainJob {name} and its pods are deleted")


def delete_all(namespace: Namespace, run_id: str) -> list[str]:
    """Delete every TrainJob of a pipeline run; return their names."""
    label = f"{spec.RUN}={spec.run_label(run_id)}"
    try:
        found = [str(one["metadata"]["name"]) for one in namespace.list(TRAINJOBS, {"labelSelector": label})[0]]
    except Refused as refused:
        if refused.status in (403, 404):  # who may not see TrainJobs has made none, and without a Trainer nobody has
            return []
        raise InputError(f"cluster: the API does not list TrainJobs ({refused}).") from None
    with _refusals(namespace):
        for name in found:
            namespace.delete(TRAINJOBS, name)
    return found


def _run_goes_on(namespace: Namespace, job: Object) -> bool:
    """Whether the pipeline run of a TrainJob is alive, although this process of it was asked to end.

    Kubeflow Pipelines stops a run by setting its Workflow's deadline to 0 (TerminateWorkflow of its API server), Argo
    by `spec.shutdown`. Where that cannot be read the run is taken to go on: its report deletes what it leaves.
    """
    owners = job["metadata"].get("ownerReferences") or []
    if not owners:
        return False  # nobody would find it again: this is no pod of a run
    namespace.patience = _FINAL_SECONDS
    try:
        workflow = namespace.get(WORKFLOWS, owners[0]["name"])
    except (Refused, InputError):
        return True
    asked = (workflow or {}).get("spec") or {}
    return workflow is not None and not asked.get("shutdown") and asked.get("activeDeadlineSeconds") != 0


def _submit(namespace: Namespace, job: Object) -> None:
    log, name = logs.get("train"), job["metadata"]["name"]
    while True:
        try:
            made = namespace.create(TRAINJOBS, job)
        except Refused as refused:
            if refused.status != 409:
                raise
        else:
            _require_patches(made, job)
            trainer = job["spec"]["trainer"]
            size = f"{trainer['numNodes']} nodes, processes a node: {trainer['numProcPerNode']}"
            log.info(f"submitted TrainJob {name}: {size}")
            return
        known = namespace.get(TRAINJOBS, name)
        if known is None:
            continue
        ours, theirs = (one["metadata"].get("annotations", {}).get(spec.WORK) for one in (job, known))
        if ours != theirs:
            raise InputError(
                f"train: a TrainJob {name} of another training ({theirs}) is in namespace {namespace.name}. Delete it: "
                f"kubectl -n {namespace.name} delete trainjob {name}"
            )
        if not _over(known):
            log.info(f"found TrainJob {name} again, submitted at {known['metadata'].get('creationTimestamp')}")
            return
        namespace.delete(TRAINJOBS, name)
        _wait_until_gone(namespace, name)


def _over(job: Object) -> bool:
    """Whether a job that was found cannot be followed on: it has failed, or is being deleted."""
    conditions = (job.get("status") or {}).get("conditions") or []
    failed = any(one["type"] == "Failed" and one.get("status") == "True" for one in conditions)
    return failed or "deletionTimestamp" in job["metadata"]


def _require_patches(made: Object, job: Object) -> None:
    """See that the API kept every field: an older one drops what it does not know, in silence."""
    kept = made.get("spec") or {}
    if not kept.get("runtimePatches") and job["spec"]["runtimePatches"]:
        raise InputError(
            "cluster: this Kubeflow Trainer is of an unsupported version: its TrainJob has no runtimePatches. Install "
            "Kubeflow Trainer 2.2 or newer."
        )


def _wait_until_gone(namespace: Namespace, name: str) -> None:
    until = time.monotonic() + _GONE_SECONDS
    while namespace.get(TRAINJOBS, name) is not None:
        if time.monotonic() > until:
            logs.get("train").warning(f"the TrainJob {name} is marked as deleted, and its pods are still ending")
            return
        time.sleep(namespace.pause)


@contextlib.contextmanager
def _refusals(namespace: Namespace) -> Iterator[None]:
    """Turn what the API refuses into a sentence."""
    try:
        yield
    except Refused as refused:
        if refused.status == 403:
            raise InputError(
                f"cluster: the run may not do this in namespace {namespace.name}: {refused.message}. Apply "
                "manifests/trainer there, and run under its service account (multimodal-gemma)."
            ) from None
        if refused.status == 404:
            raise InputError(
                "cluster: the API knows no TrainJob of trainer.kubeflow.org/v1alpha1, so Kubeflow Trainer is missing "
                "or of an unsupported version. Install 2.2 or newer."
            ) from None
        raise InputError(
            f"cluster: the API refuses the TrainJob ({refused.status}: {refused.message}). Check section nodes of the "
            "configuration, and that Kubeflow Trainer is 2.2 or newer."
        ) from None


def _reachable(uri: str) -> bool:
    """Whether an address means the same on another machine."""
    return bool(uri) and "127.0.0.1" not in uri and "localhost" not in uri
