"""Where training takes place: in the pod of the task, or on nodes that it only waits for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from multimodal_gemma.config.schema import NodesConfig, ResourcesConfig
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config import Config

# What the task asks of the cluster while others train: it uploads, waits, and downloads.
_SUBMITTER = ResourcesConfig(accelerator_count=0, cpu="2", memory="8Gi")


def divide(config: Config) -> tuple[Config, ResourcesConfig]:
    """Divide what a run asks of the cluster between the pod of train-model and the nodes of a TrainJob.

    Args:
        config: resolved, see `config.hardware`; `training.nodes` decides; what section `nodes` says already wins.

    Returns:
        The configuration, with what each node asks of the cluster; and what the task's pod asks.

    Raises:
        InputError: there are several nodes and no place to exchange data in.
    """
    if config.training.nodes == 1:
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
        raise InputError(
            f"config: training.nodes={config.training.nodes} needs a place in an object store through which the nodes "
            f"get data and give the model; nodes.work_uri={work!r} is none. Set nodes.work_uri=s3://BUCKET/PREFIX."
        )
    return work
