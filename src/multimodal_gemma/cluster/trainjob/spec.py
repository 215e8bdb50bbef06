"""The TrainJob that train-model submits (Kubeflow Trainer 2.2 or newer).

The TrainingRuntime in manifests/trainer holds what every training has in common: the pod's security, volumes, account
and patience. The TrainJob adds what one training needs: image, command, nodes, processes a node, resources, place.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.cluster.kube import pods
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import NodesConfig

Object = dict[str, Any]

VERSION = "trainer.kubeflow.org/v1alpha1"
QUEUE = "kueue.x-k8s.io/queue-name"
RUN = "multimodal-gemma/run"  # label: the pipeline run that a TrainJob belongs to
WORK = "multimodal-gemma/work"  # annotation: where its request and its model lie
MANAGER = "multimodal-gemma/train-model"  # owner of the runtime patch
_MOUNT = "/work"  # of a node's own volume
_JOB = "node"  # of the runtime's replicated jobs, the one that trains
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a node has in common with the pod that submits: known only where that is a pod.

    Attributes:
        image: of the container; "" leaves the runtime's.
        env: variables, those of Secrets by the Secrets' names.
        pull_secrets: names of Secrets that open the image's registry.
        workflow: reference to the Workflow of the pipeline run; what it owns goes when it is deleted. Empty: no run.
    """

    image: str = ""
    env: list[Object] = dataclasses.field(default_factory=list)
    pull_secrets: list[str] = dataclasses.field(default_factory=list)
    workflow: Object = dataclasses.field(default_factory=dict)


def job_name(run_id: str, identity: Any) -> str:
    """Return the name of a training's TrainJob: a retry of the same task finds it again."""
    return f"mmgemma-{files.digest_of([run_id, identity])[:16]}"


def run_label(run_id: str) -> str:
    """Return a run's id as the value of a label."""
    return run_id if _LABEL.fullmatch(run_id) else files.digest_of(run_id)[:32]


def build(
    name: str, work: str, nodes: int, asked: NodesConfig, runtime: Object, around: Surroundings, *, run_id: str = ""
) -> Object:
    """Return the TrainJob.

    Args:
        name: its name.
        work: `s3://` prefix with the request; gets the model.
        nodes: how many pods train together.
        asked: what a node asks of the cluster; wins over the runtime.
        runtime: the TrainingRuntime, for what is not asked.
        around: what nodes share with the pod that submits.
        run_id: the pipeline run; "" for none.

    Raises:
        InputError: the runtime has no job named "node", or the count of accelerators is none.
    """
    labels = {"app.kubernetes.io/part-of": "multimodal-gemma", **({RUN: run_label(run_id)} if run_id else {})}
    resources, processes = _resources(asked, _container(runtime, asked.runtime))
    place: Object = {}
    if asked.node_selector:
        place["nodeSelector"] = dict(asked.node_selector)
    if asked.tolerations:
        place["tolerations"] = [dict(one) for one in asked.tolerations]
    if asked.scratch:
        place |= _volume(asked)
    if around.pull_secrets:
        place["imagePullSecrets"] = [{"name": secret} for secret in around.pull_secrets]
    pod = {"metadata": {"labels": labels}, **({"spec": place} if place else {})}
    patch = {"replicatedJobs": [{"name": _JOB, "template": {"spec": {"template": pod}}}]}
    trainer: Object = {
        "command": ["python3", "-m", "multimodal_gemma.stages.train_node"],
        "args": [work, *([f"{_MOUNT}/mmgemma"] if asked.scratch else [])],
        "numNodes": nodes,
        "numProcPerNode": processes,
        **({"image": around.image} if around.image else {}),
        **({"env": around.env} if around.env else {}),
        **({"resourcesPerNode": resources} if resources else {}),
    }
    return {
        "apiVersion": VERSION,
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": labels | ({QUEUE: asked.queue} if asked.queue else {}),
            "annotations": {WORK: work},
            **({"ownerReferences": [around.workflow]} if around.workflow else {}),
        },
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": asked.runtime},
            "trainer": trainer,
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": patch}}}],
        },
    }


def scratch(runtime: Object) -> str:
    """Return how large the scratch volume of a runtime's nodes may become; "" where it has no bounds."""
    volumes = _pod(runtime).get("volumes") or []
    found = next((one.get("emptyDir") or {} for one in volumes if one.get("name") == "scratch"), {})
    return str(found.get("sizeLimit") or "")


def _volume(asked: NodesConfig) -> Object:
    """Return a volume of a node's own, made and deleted with its pod, and where it is mounted."""
    claim: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": asked.scratch}}}
    if asked.scratch_class:
        claim["storageClassName"] = asked.scratch_class
    name = "work"
    return {
        "volumes": [{"name": name, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}],
        "containers": [{"name": pods.CONTAINER, "volumeMounts": [{"name": name, "mountPath": _MOUNT}]}],
    }


def _pod(runtime: Object) -> Object:
    """Return the pod of a runtime's job that trains; {} where it has none."""
    jobs = ((runtime["spec"].get("template") or {}).get("spec") or {}).get("replicatedJobs") or []
    job = next((one for one in jobs if one.get("name") == _JOB), None)
    return dict(job["template"]["spec"]["template"]["spec"]) if job else {}


def _container(runtime: Object, name: str) -> Object:
    """Return the container of a runtime that trains."""
    for container in _pod(runtime).get("containers") or []:
        if container["name"] == pods.CONTAINER:
            return dict(container)
    raise InputError(
        f"cluster: the TrainingRuntime {name} has no container {pods.CONTAINER!r} in a job {_JOB!r}. Apply "
        "manifests/trainer, or name another with nodes.runtime."
    )


def _resources(asked: NodesConfig, container: Object) -> tuple[Object, int]:
    """Return what differs from the runtime's resources, complete, and the processes a node."""
    known = container.get("resources") or {}
    limits, requests = dict(known.get("limits") or {}), dict(known.get("requests") or {})
    text = str(limits.get(asked.accelerator, "0"))
    count = asked.accelerator_count if asked.accelerator_count is not None else int(text) if text.isdecimal() else 0
    changes = {"cpu": asked.cpu, "memory": asked.memory}
    if asked.accelerator_count is not None:
        changes[asked.accelerator] = str(count) if count else ""
        for table in (limits, requests):
            table.pop(asked.accelerator, None)
    changed = {key: value for key, value in changes.items() if value}
    if not changed and asked.accelerator_count is None:
        return {}, max(count, 1)
    return {"limits": {**limits, **changed}, "requests": {**requests, **changed}}, max(count, 1)
