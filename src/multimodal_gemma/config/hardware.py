"""What a pod that trains or evaluates asks of the cluster, by the name of the hardware.

The GPU profiles are node pools of GKE: its node label `cloud.google.com/gke-accelerator` and its taint
`nvidia.com/gpu=present:NoSchedule` (https://cloud.google.com/kubernetes-engine/docs/how-to/gpus), for spot nodes also
the label `cloud.google.com/gke-spot` (https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms). Cores and
memory leave room for the node's own daemons on the smallest machine with one such GPU
(https://cloud.google.com/compute/docs/gpus). Elsewhere labels differ: say them, or take `custom`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from multimodal_gemma.config.schema import HARDWARE, Config, ResourcesConfig
from multimodal_gemma.errors import InputError

_SPOT = "cloud.google.com/gke-spot"


def _gke(label: str, cpu: str, memory: str, *, spot: bool = False) -> dict[str, Any]:
    taints = ["nvidia.com/gpu", *([_SPOT] if spot else [])]
    return {
        "accelerator_count": 1,
        "cpu": cpu,
        "memory": memory,
        "node_selector": {"cloud.google.com/gke-accelerator": label, **({_SPOT: "true"} if spot else {})},
        "tolerations": [{"key": taint, "operator": "Exists", "effect": "NoSchedule"} for taint in taints],
        "spot": spot,
    }


PROFILES: dict[str, dict[str, Any]] = {
    "cpu": {"accelerator_count": 0, "cpu": "2", "memory": "8Gi"},
    "l4": _gke("nvidia-l4", "6", "24Gi"),  # g2-standard-8: 8 cores, 32 GB
    "a100": _gke("nvidia-tesla-a100", "10", "64Gi"),  # a2-highgpu-1g: 12 cores, 85 GB
    "a100-spot": _gke("nvidia-tesla-a100", "10", "64Gi", spot=True),
    "a100-80gb": _gke("nvidia-a100-80gb", "10", "128Gi"),  # a2-ultragpu-1g: 12 cores, 170 GB
    "h100": _gke("nvidia-h100-80gb", "22", "192Gi"),  # a3-highgpu-1g: 26 cores, 234 GB
    "custom": {},
}
assert tuple(PROFILES) == HARDWARE


def resolve(config: Config) -> Config:
    """Return the configuration with everything said that its hardware stands for; what was said already stays.

    A run that asks for accelerators trains and evaluates on them or fails: its devices are "cuda", never "auto".

    Raises:
        InputError: hardware "custom" without cores or memory, or a device that contradicts the accelerators.
    """
    asked, unsaid = config.resources, ResourcesConfig()
    profile = PROFILES[asked.hardware]
    filled = {key: value for key, value in profile.items() if getattr(asked, key) == getattr(unsaid, key)}
    resources = dataclasses.replace(asked, **filled)
    resources.accelerator_count = resources.accelerator_count or 0
    if missing := [key for key in ("cpu", "memory") if not getattr(resources, key)]:
        raise InputError(
            f"config: resources.hardware={asked.hardware} says nothing about resources.{missing[0]}. "
            f"Set resources.{missing[0]}, e.g. {'8' if missing[0] == 'cpu' else '32Gi'}."
        )
    training, evaluation = config.training, config.evaluation
    if resources.accelerator_count:
        training = dataclasses.replace(training, device=_on_gpu("training", training.device))
        evaluation = dataclasses.replace(evaluation, device=_on_gpu("evaluation", evaluation.device))
    return dataclasses.replace(config, resources=resources, training=training, evaluation=evaluation)


def require(config: Config) -> None:
    """Refuse hardware on which a run of this configuration would come to nothing after hours.

    Args:
        config: of `resolve`.

    Raises:
        InputError: a recipe without an accelerator, or spot nodes without a place for what they had learnt.
    """
    resources = config.resources
    if config.preset != "sample" and not resources.accelerator_count and config.training.device != "cpu":
        raise InputError(
            f"config: preset {config.preset} would train for days without a GPU, and resources.hardware="
            f"{resources.hardware} asks for none. Choose the hardware, e.g. l4 or a100, or set training.device=cpu."
        )
    if not resources.spot:
        return
    if not config.training.checkpoint_uri:
        raise InputError(
            "config: a spot node takes its disk along when it goes. Set training.checkpoint_uri=s3://BUCKET/PREFIX, "
            "which gets a copy of each checkpoint, or choose hardware that stays."
        )
    if not config.nodes.work_uri:
        raise InputError(
            "config: on spot nodes a TrainJob trains, which gets its data through an object store. Set "
            "nodes.work_uri=s3://BUCKET/PREFIX, or choose hardware that stays."
        )


def _on_gpu(section: str, device: str) -> str:
    if device == "cpu":
        raise InputError(
            f"config: {section}.device=cpu, but the hardware has accelerators. Set resources.accelerator_count=0, "
            f"or leave {section}.device out."
        )
    return "cuda"
