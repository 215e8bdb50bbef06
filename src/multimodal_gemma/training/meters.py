"""What a step cost: tokens, padding, memory, and which share of the hardware's peak it used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from multimodal_gemma.planning import devices

if TYPE_CHECKING:
    from multimodal_gemma.model.forward import Batch
    from multimodal_gemma.model.shared_prefix import SharedBatch
    from multimodal_gemma.planning.arithmetic import Work


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the micro-batches of all processes hold together.

    Attributes:
        supervised: tokens with a loss.
        positions: padding counted.
        real: positions without padding.
        pairs: what attention costs: the sum over rows of length squared, of a shared beginning once.
        images: pictures that the projector sees.
    """

    supervised: int
    positions: int
    real: int
    pairs: int
    images: int


class Meter:
    """Measures the steps of one training.

    Args:
        work: floating-point operations of the model's parts.
        accelerator: the process's device, and how many there are.
    """

    def __init__(self, work: Work, accelerator: Accelerator) -> None:
        self._work, self._accelerator = work, accelerator
        name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else ""
        known = devices.find(name) if accelerator.mixed_precision == "bf16" else None
        self._peak = known.tflops * 1e12 * accelerator.num_processes if known else None

    def counts(self, batches: Sequence[Batch | SharedBatch]) -> Counts:
        """Count over all processes; every process must call it."""
        own = torch.tensor(
            [
                sum(len(batch.targets) for batch in batches),
                sum(batch.positions for batch in batches),
                sum(batch.real for batch in batches),
                sum(batch.pairs for batch in batches),
                sum(len(batch.image_indices) for batch in batches),
            ],
            device=self._accelerator.device,
        )
        return Counts(*(int(value) for value in self._accelerator.reduce(own, "sum").tolist()))

    def scalars(self, counts: Counts, seconds: float) -> dict[str, float]:
        """Return a step's figures: tokens_per_second, padding_share, memory_gb and, on a GPU whose peak is known, mfu.

        MFU as Chowdhery et al. (2022) define it: the operations that the mathematics needs, over what the hardware
        could have done in that time; recomputation is not counted.
        """
        found: dict[str, float] = {
            "tokens_per_second": round(counts.positions / seconds),
            "padding_share": round(1 - counts.real / max(counts.positions, 1), 4),
            "memory_gb": round(self._memory() / 1e9, 3),
        }
        if self._peak is not None:
            needed = self._work.step(counts.positions, counts.pairs, counts.supervised, counts.images)
            found["mfu"] = round(needed / seconds / self._peak, 4)
        return found

    def _memory(self) -> int:
        """Return the most that the GPU held so far, or what this process holds where there is none."""
        if self._accelerator.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._accelerator.device))
        import psutil

        return int(psutil.Process().memory_info().rss)
