"""AdamW in groups: each part of the model at its own rate, norms and biases without decay.

The projector learns from random weights and wants five times the rate of adapters that bend pretrained ones; norms and
biases are scales and offsets, which it has no meaning to pull to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LlavaForConditionalGeneration

from multimodal_gemma.model.adapters import part_of

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import TrainingConfig

PARTS = ("projector", "lora", "language", "vision")


def base_rates(training: TrainingConfig) -> dict[str, float]:
    """Return the peak learning rate of each part."""
    return {part: float(getattr(training, f"{part}_lr")) for part in PARTS}


def make_optimiser(
    llava: LlavaForConditionalGeneration, training: TrainingConfig, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter, 2019) over what learns, each part in a group with and one without decay.

    Args:
        llava: the joined model after `apply_policies`.
        training: rates and weight decay.
        device: decides whether the fused implementation is there.

    Returns:
        Optimiser whose groups carry "part", the name of their learning rate.
    """
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in llava.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim >= 2), []).append(parameter)
    rates = base_rates(training)
    described: list[dict[str, Any]] = [
        {
            "params": parameters,
            "part": part,
            "lr": rates[part],
            "weight_decay": training.weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    made = torch.optim.AdamW(described, fused=device.type in ("cpu", "cuda"))
    made.register_step_post_hook(count_as_change)
    return made


def count_as_change(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Count a step as the change in place that it is: the fused kernels leave a weight's version as it was.

    Whoever keeps something computed from a weight, as `model.fused_lora` does, would go on with the old one.
    """
    torch.autograd.graph.increment_version([weight for group in optimiser.param_groups for weight in group["params"]])


def set_rates(optimiser: torch.optim.Optimizer, training: TrainingConfig, factor: float) -> dict[str, float]:
    """Set every group's learning rate to `factor` times its peak; return the rates by part."""
    peaks = base_rates(training)
    for group in optimiser.param_groups:
        group["lr"] = peaks[group["part"]] * factor
    return {group["part"]: group["lr"] for group in optimiser.param_groups}
