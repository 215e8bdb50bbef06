"""What happens at which step, as pure functions of seed and step: nothing here has a position to save.

How many steps there are, which conversations each of them sees, how one is shared out to several processes, when it is
validated, and at which rate each part of the model learns. A resumed run asks for the step it stopped at.

AdamW has groups: the projector learns from random weights and wants five times the rate of adapters that bend
pretrained ones; norms and biases are scales and offsets, which it has no meaning to pull to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from multimodal_gemma.model.adapters import part_of

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import TrainingConfig


def plan_steps(training: TrainingConfig, samples: int) -> tuple[int, int]:
    """Return (optimiser steps in all, steps of an epoch); the last step of an epoch may be smaller than the others."""
    an_epoch = -(-samples // training.batch_size)
    return min(an_epoch * training.epochs, training.max_steps or an_epoch * training.epochs), an_epoch


def validation_steps(steps: int, an_epoch: int, per_epoch: int) -> set[int]:
    """Return after which steps validation comes: evenly over each epoch, and after the last."""
    epochs = -(-steps // an_epoch)
    places = {
        round(epoch * an_epoch + an_epoch * part / per_epoch)
        for epoch in range(epochs)
        for part in range(1, per_epoch + 1)
    }
    return {step for step in places if 1 <= step <= steps} | {steps}


def epoch_steps(images: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut one epoch into optimiser steps.

    Args:
        images: of each sample, int64 (samples,), -1 for none. An image's samples stay neighbours: a step that holds
            them all reads the image once.
        batch_size: samples a step.
        seed: of the whole run.
        epoch: counted from 0; each has an order of its own.

    Returns:
        Sample indices of each step; together each index once.
    """
    generator = np.random.default_rng([seed, epoch])
    _, unit = np.unique(_units(images), return_inverse=True)
    order = np.argsort(generator.permutation(int(unit.max(initial=-1)) + 1)[unit], kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def share_of_rank(step: np.ndarray, images: np.ndarray, lengths: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Return the samples of a step that one process computes: about as many positions as the others have.

    Args:
        step: samples of the step; at least one a process.
        images: of every sample of the split.
        lengths: positions of every sample of the split.
        rank: which process, from 0.
        ranks: how many there are.
    """
    if ranks == 1:
        return step
    _, first, unit = np.unique(_units(images)[step], return_index=True, return_inverse=True)
    if len(first) < ranks:  # an image's conversations part, so that every process has some
        return step[rank::ranks]
    load = np.bincount(unit, lengths[step])
    held, owner = np.zeros(ranks), np.empty(len(first), np.int64)
    for heaviest in np.argsort(-load, kind="stable"):
        owner[heaviest] = held.argmin()  # lengths are above 0: the first ones go to a process each
        held[owner[heaviest]] += load[heaviest]
    return step[owner[unit] == rank]


def rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate at a step: linear from zero over the warm-up, then linear to zero.

    Args:
        step: counted from 1.
        steps: of the whole run.
        warmup_fraction: of `steps`.
    """
    warmup = round(steps * warmup_fraction)
    if step <= warmup:
        return step / warmup
    return (steps - step + 1) / (steps - warmup)


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
    described: list[dict[str, Any]] = [
        {"params": parameters, "part": part, "weight_decay": training.weight_decay if decayed else 0.0}
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    made = torch.optim.AdamW(described, fused=device.type in ("cpu", "cuda"))
    made.register_step_post_hook(count_as_change)
    return made


def count_as_change(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Count a step as the change in place that it is: the fused kernels leave a weight's version as it was.

    Whoever keeps something computed from a weight, as `model.adapters.fuse` does, would go on with the old one.
    """
    torch.autograd.graph.increment_version([weight for group in optimiser.param_groups for weight in group["params"]])


def set_rates(optimiser: torch.optim.Optimizer, training: TrainingConfig, factor: float) -> dict[str, float]:
    """Set every group's learning rate to `factor` times its peak; return the rates by part."""
    for group in optimiser.param_groups:
        group["lr"] = getattr(training, f"{group['part']}_lr") * factor
    return {group["part"]: group["lr"] for group in optimiser.param_groups}


def _units(images: np.ndarray) -> np.ndarray:
    """Return the image of each sample, and a number of its own where there is none."""
    return np.where(images >= 0, images, -1 - np.arange(len(images)))
