"""What a task asks of the cluster: resources, places, secrets, patience.

A task without requests is scheduled anywhere and evicted first; one without limits can take its node down. So every
task of every pipeline passes through here.
"""

from __future__ import annotations

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineParameterChannel

HOUR = 3600  # seconds
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


def accelerated(
    task: PipelineTask,
    *,
    accelerator: Text,
    count: Text,
    cpu: Text,
    memory: Text,
    node_selector: dict[str, str] | PipelineParameterChannel,
    tolerations: list[dict[str, str]] | PipelineParameterChannel,
    hours: float,
) -> PipelineTask:
    """Give a task what the run's parameters ask for, shared memory for its data loaders, and a deadline.

    Args:
        task: the task.
        accelerator: resource name, e.g. "nvidia.com/gpu".
        count: how many, as text; "0" asks for none, and the pod fits a node without accelerators.
        cpu: cores, requested and limited.
        memory: memory, requested and limited.
        node_selector: labels that the node must have.
        tolerations: taints that the pod accepts.
        hours: after how long its pod is ended.
    """
    _sized(task, cpu=(cpu, cpu), memory=(memory, memory), hours=hours)
    task.set_accelerator_type(accelerator).set_accelerator_limit(count)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration_json(task, tolerations)
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="2Gi")
    return task


def retried(task: PipelineTask, *, times: int = 3, wait: str = "30s") -> PipelineTask:
    """Repeat a task that fails for outside reasons (network, a reclaimed node), waiting twice as long each time."""
    return task.set_retry(num_retries=times, backoff_duration=wait, backoff_factor=2.0, backoff_max_duration="600s")


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


def _sized(task: PipelineTask, *, cpu: tuple[Text, Text], memory: tuple[Text, Text], hours: float) -> PipelineTask:
    kubernetes.set_security_context(task, run_as_non_root=True)  # the images' user is a number, and it is not 0
    task.set_cpu_request(cpu[0]).set_cpu_limit(cpu[1]).set_memory_request(memory[0]).set_memory_limit(memory[1])
    return kubernetes.set_timeout(task, int(hours * HOUR))
