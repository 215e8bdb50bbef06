"""What a task asks of the cluster: resources, places, secrets, patience.

A task without requests is scheduled anywhere and evicted first; one without limits can take its node down. So every
task of every pipeline passes through here.
"""

from __future__ import annotations

from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineParameterChannel

HOUR = 3600  # seconds
LABEL = ("app.kubernetes.io/part-of", "multimodal-gemma")  # of every pod, so that policies and quota find ours alone
_WAIT, _FACTOR = 60, 2.0  # seconds before the first new pod, and how much longer before each further one
Text = str | PipelineParameterChannel


def light(task: PipelineTask, *, hours: float = 1) -> PipelineTask:
    """Give a task that only decides something a small pod, and a deadline."""
    return _sized(task, cpu=("250m", "1"), memory=("1Gi", "4Gi"), hours=hours)


def busy(task: PipelineTask, *, memory: str, hours: float) -> PipelineTask:
    """Give a task that works on a CPU up to four cores, and a deadline.

    Args:
        task: the task.
        memory: its limit, e.g. "8Gi".
        hours: after how long its pod is ended.
    """
    return _sized(task, cpu=("1", "4"), memory=("2Gi", memory), hours=hours)


def accelerated(task: PipelineTask, plans: dict[str, PipelineParameterChannel], *, hours: float) -> PipelineTask:
    """Give a task the place that preflight decided on, shared memory for its data loaders, and a deadline.

    Args:
        task: the task.
        plans: outputs of preflight; those that begin with the first word of the task's name are meant, e.g. train_cpu.
        hours: after how long its pod is ended.
    """
    place = {
        name: plans[f"{task.name.partition('-')[0]}_{name}"] for name in ("count", "cpu", "memory", "nodes", "taints")
    }
    _sized(task, cpu=(place["cpu"],) * 2, memory=(place["memory"],) * 2, hours=hours)
    task.set_accelerator_type(plans["accelerator"]).set_accelerator_limit(place["count"])
    kubernetes.add_node_selector_json(task, place["nodes"])
    kubernetes.add_toleration_json(task, place["taints"])
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="2Gi")
    return task


def reusable(task: PipelineTask) -> PipelineTask:
    """Let a later run that would do the same take this task's result instead.

    A parameter that names the run would make every run another, so the task reads its run's id from its pod's label:
    the environment is no part of the cache's key.
    """
    task.set_caching_options(True)
    return kubernetes.use_field_path_as_env(task, "MMGEMMA_RUN_ID", "metadata.labels['pipeline/runid']")


def with_hub_token(task: PipelineTask, secret: Text) -> PipelineTask:
    """Let a task download gated models: the key `token` of an optional Secret becomes HF_TOKEN."""
    return kubernetes.use_secret_as_env(task, secret, {"token": "HF_TOKEN"}, optional=True)


def with_object_store(task: PipelineTask, secret: Text) -> PipelineTask:
    """Let a task reach an object store: keys `accesskey`, `secretkey` and `endpoint` of an optional Secret.

    A store of the cluster's own (MinIO, SeaweedFS) needs its endpoint; without one it is AWS.
    """
    keys = {
        "accesskey": "AWS_ACCESS_KEY_ID",
        "secretkey": "AWS_SECRET_ACCESS_KEY",
        "endpoint": "AWS_ENDPOINT_URL",
    }
    return kubernetes.use_secret_as_env(task, secret, keys, optional=True)


def with_registry(task: PipelineTask, secret: Text) -> PipelineTask:
    """Let a task log in to MLflow: keys `username` and `password` of an optional Secret."""
    keys = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
    return kubernetes.use_secret_as_env(task, secret, keys, optional=True)


def _sized(task: PipelineTask, *, cpu: tuple[Any, Any], memory: tuple[Any, Any], hours: float) -> PipelineTask:
    """Set requests and limits, a deadline, our label, and new pods for lost ones.

    What fails inside a pod is tried again there (stages/tries.py). Argo counts the time in which it may start and run
    another pod from the start of the first one, so that time has room for all of them and the waits between.
    """
    kubernetes.set_security_context(task, run_as_non_root=True)  # the images' user is a number, and it is not 0
    kubernetes.add_pod_label(task, *LABEL)
    task.set_cpu_request(cpu[0]).set_cpu_limit(cpu[1]).set_memory_request(memory[0]).set_memory_limit(memory[1])
    deadline, pods = int(hours * HOUR), 2
    room = (pods + 1) * deadline + int(sum(_WAIT * _FACTOR**number for number in range(pods)))
    task.set_retry(pods, backoff_duration=f"{_WAIT}s", backoff_factor=_FACTOR, backoff_max_duration=f"{room}s")
    return kubernetes.set_timeout(task, deadline)
