"""Where training takes place: in the pod of the task, or on nodes that it only waits for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from multimodal_gemma.config.schema import NodesConfig, ResourcesConfig
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config import Config

# What the task asks of the cluster while others train: it uploads, waits, and downloads.
_SUBMITTER = ResourcesConfig(accelerator_count=0, cpu="500m", memory="2Gi")


def divide(config: Config, *, trainer: bool = False) -> tuple[Config, ResourcesConfig]:
    """Divide what a run asks of the cluster between the pod of train-model and the nodes of a TrainJob.

    Args:
        config: resolved, see `config.hardware`; what section `nodes` says already wins.
        trainer: Kubeflow Trainer is at hand: on spot nodes a TrainJob trains, also on one. There python hears SIGTERM
            in time for a checkpoint; in a task of a pipeline it has less than a second.

    Returns:
        The configuration, with what each node asks of the cluster; and what the task's pod asks.

    Raises:
        InputError: a TrainJob trains, and there is no place to exchange data in.
    """
    if config.resources.spot and trainer:
        config = dataclasses.replace(config, nodes=dataclasses.replace(config.nodes, train_job=True))
    if not config.delegates:
        return config, config.resources
    require_work(config)
    unset, shared = NodesConfig(), ("accelerator", "accelerator_count", "cpu", "memory", "node_selector", "tolerations")
    filled = {
        key: getattr(config.resources, key) for key in shared if getattr(config.nodes, key) == getattr(unset, key)
    }
    return dataclasses.replace(config, nodes=dataclasses.replace(config.nodes, **filled)), _SUBMITTER


def require_work(config: Config) -> str:
    """Return the place through which nodes exchange data, without a slash at its end.

    Raises:
        InputError: the configuration names none.
    """
    work = config.nodes.work_uri.rstrip("/")
    if not work.startswith("s3://") or not work.removeprefix("s3://"):
        why = f"training.nodes={config.training.nodes}" if config.training.nodes > 1 else "a training on spot nodes"
        raise InputError(
            f"config: {why} needs a place in an object store through which the nodes "
            f"get data and give the model; nodes.work_uri={work!r} is none. Set nodes.work_uri=s3://BUCKET/PREFIX."
        )
    return work
