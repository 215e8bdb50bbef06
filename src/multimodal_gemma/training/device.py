"""Where training runs and in which precision, or the sentence that says why not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import sharding

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import TrainingConfig


def choose_device(asked: str, key: str) -> str:
    """Return "cuda" or "cpu".

    Args:
        asked: "auto", "cpu" or "cuda".
        key: the configuration key, for the message.

    Raises:
        InputError: a GPU was asked for where there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(f"config: {key}=cuda, but this machine has no usable NVIDIA GPU. Set {key}=auto or cpu.")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str, device: str, key: str) -> str:
    """Return "bf16" or "fp32".

    Args:
        asked: "auto", "fp32" or "bf16".
        device: "cuda" or "cpu".
        key: the configuration key, for the message.

    Raises:
        InputError: bf16 was asked for where no GPU computes in it.
    """
    able = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and not able:
        raise InputError(
            f"config: {key}=bf16 needs a GPU that computes in it; this run is on {device}. Set {key}=auto or fp32."
        )
    return asked if asked != "auto" else "bf16" if able else "fp32"


def leads() -> bool:
    """Tell whether this process is the first of those that train together, as their launcher has numbered them."""
    return os.environ.get("RANK", "0") == "0"


def make_accelerator(training: TrainingConfig, trackers: Sequence[str | GeneralTracker], folder: Path) -> Accelerator:
    """Return accelerate's view of this process: its device, its rank and its precision.

    Args:
        training: names device and precision.
        trackers: what accelerate logs with.
        folder: for trackers that write files.

    Raises:
        InputError: the device or precision that was asked for is not there.
    """
    device = choose_device(training.device, "training.device")
    precision = choose_precision(training.precision, device, "training.precision")
    # The state is shared by a whole process: a second training in it (a notebook) may differ in precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = sharding.plugin() if training.sharding == "fsdp" else None
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(trackers) or None,
        # A batch of text alone leaves the projector without a gradient; the buffers are constants.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        project_config=ProjectConfiguration(logging_dir=str(folder)),
        fsdp_plugin=plugin,
    )
    if plugin is not None:
        sharding.activate(accelerator, plugin)
    return accelerator
