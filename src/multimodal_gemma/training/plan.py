"""What one training is made of, how many steps it has, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Batch, SupervisedLoss
from multimodal_gemma.training import sampler

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import TrainingConfig
    from multimodal_gemma.data.processed import Split
    from multimodal_gemma.planning.arithmetic import Work
    from multimodal_gemma.training.samples import Samples
    from multimodal_gemma.training.sharing import Sharing


@dataclasses.dataclass(frozen=True)
class Job:
    """What one training is made of.

    Attributes:
        training: the optimiser, its schedule and the shape of a step.
        loss: the model with its summed loss; what learns is marked, all of it on the accelerator's device.
        train: conversations to learn from.
        val: conversations to validate on; may be empty.
        make_batch: split and sample indices to a micro-batch.
        pictures: image indices to what `loss` takes of them: features, or images where the encoder learns.
        augmented: the same, of the images as an epoch, counted from 0, shows them to training; None: as they are.
        folder: gets checkpoints/ and curves.jsonl.
        identity: configuration and inputs that a checkpoint belongs to.
        budget: positions a forward pass may have.
        work: floating-point operations of the model's parts.
        samples: asks for answers to look at, at every validation; None: nobody does.
        sharing: of the training split, so that each image is read once a micro-batch; None: each conversation alone.
        val_sharing: the same of the validation split.
    """

    training: TrainingConfig
    loss: SupervisedLoss
    train: Split
    val: Split
    make_batch: Callable[[Split, Sequence[int]], Batch]
    pictures: Callable[[Sequence[int]], Tensor]
    folder: Path
    identity: dict[str, Any]
    budget: int
    work: Work
    samples: Samples | None = None
    augmented: Callable[[Sequence[int], int], Tensor] | None = None
    sharing: Sharing | None = None
    val_sharing: Sharing | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        steps: optimiser steps done.
        best_step: whose checkpoint has the lowest validation loss; the last one where nothing was validated.
        validation_loss: of that step; None where nothing was validated.
        stopped_early: the validation loss no longer fell.
        rows: the lines of curves.jsonl.
    """

    steps: int
    best_step: int
    validation_loss: float | None
    stopped_early: bool
    rows: list[dict[str, Any]]

    @property
    def samples_per_second(self) -> float:
        """Throughput over all steps."""
        return sum(row["samples"] for row in self.rows) / max(sum(row["seconds"] for row in self.rows), 1e-9)


def plan_steps(training: TrainingConfig, samples: int) -> tuple[int, int]:
    """Return (optimiser steps in all, steps of an epoch)."""
    an_epoch = sampler.steps_per_epoch(samples, training.batch_size)
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


def require_budget(split: Split, budget: int) -> None:
    """Check that every sample fits into a forward pass by itself.

    Raises:
        InputError: one does not.
    """
    if not len(split):
        return
    longest = int(split.lengths.argmax())
    length = int(split.lengths[longest])
    if length > budget:
        raise InputError(
            f"config: training.batch_tokens={budget} is below the longest conversation: {split.ids[longest]} takes "
            f"{length:,} positions, image tokens counted. Set training.batch_tokens={length} or more, or prepare with "
            "a smaller data.max_text_tokens."
        )
