"""Where training takes place: in the pod of the task, or on nodes that it only waits for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multimodal_gemma.config.schema import NodesConfig
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config import Config

# What the task asks of the cluster while others train: it uploads, waits, and downloads.
_SUBMITTER: dict[str, Any] = {
    "accelerator_count": "0",
    "cpu": "2",
    "memory": "8Gi",
    "node_selector": {},
    "tolerations": [],
}


def divide(config: Config, resources: Mapping[str, Any]) -> tuple[Config, tuple[Any, ...]]:
    """Divide what a run asks of the cluster between the pod of train-model and the nodes of a TrainJob.

    Args:
        config: `training.nodes` decides; what section `nodes` says already wins.
        resources: the pipeline's parameters resources_*, of whatever trains.

    Returns:
        The configuration, with what each node asks of the cluster; and the same of the task's pod, in the order
        accelerator count, cores, memory, node selector, tolerations.

    Raises:
        InputError: the count of accelerators is none, or there are several nodes and no place to exchange data in.
    """
    if config.training.nodes == 1:
        return config, tuple(resources.get(f"resources_{key}", value) for key, value in _SUBMITTER.items())
    require_work(config)
    keys = ("accelerator", *_SUBMITTER)
    asked = {key: resources[f"resources_{key}"] for key in keys if f"resources_{key}" in resources}
    if "accelerator_count" in asked:
        asked["accelerator_count"] = _count(asked["accelerator_count"])
    unset = NodesConfig()
    filled = {key: value for key, value in asked.items() if getattr(config.nodes, key) == getattr(unset, key)}
    return dataclasses.replace(config, nodes=dataclasses.replace(config.nodes, **filled)), tuple(_SUBMITTER.values())


def _count(text: Any) -> int:
    if not str(text).isdecimal():
        raise InputError(
            f'config: resources_accelerator_count={text!r} is no number. Give one as text, e.g. "1", or "0" for a CPU.'
        )
    return int(text)


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
