"""How much goes into one forward pass: found by trying, where a GPU's memory decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Batch, SupervisedLoss

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

    from multimodal_gemma.data.processed import ProcessedDataset

ON_CPU = 16_384  # positions; memory is seldom short there, and larger ones are not faster
LARGEST = 262_144  # beyond it nothing gets faster on any GPU of today
_ROOM = 0.85  # share of the memory that may be taken: a step's shapes vary, and allocators fragment
_LEAST_ROWS = 2048  # of logits: smaller pieces keep no GPU busy
_LOGIT_BYTES = 14  # a logit's: bf16, fp32, the softmax and its gradient
_LOGIT_SHARE = 0.25  # of the device's memory that logits may take


def logit_rows(llava: LlavaForConditionalGeneration, device: torch.device) -> int:
    """Return how many supervised tokens' logits may exist at a time, where a head needs them at all.

    On a processor a constant decides, not what is free: a resumed run must add up in the same order.
    """
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 32e9
    return max(_LEAST_ROWS, int(_LOGIT_SHARE * total / (_LOGIT_BYTES * llava.config.text_config.vocab_size)))


def choose_budget(asked: int | str, accelerator: Accelerator, loss: SupervisedLoss, dataset: ProcessedDataset) -> int:
    """Return the positions that a forward pass may have.

    Args:
        asked: training.batch_tokens.
        accelerator: the process's device.
        loss: the model, placed on it.
        dataset: says how long its samples are.

    Raises:
        InputError: `asked` is neither a number nor auto, or the longest sample alone is too much for the GPU.
    """
    if isinstance(asked, int):
        return asked
    if asked != "auto":
        raise InputError(f"config: training.batch_tokens={asked!r} is not allowed. Give a number of positions or auto.")
    lengths = [int(dataset.split(name).lengths.max(initial=1)) for name in ("train", "val")]
    if accelerator.device.type != "cuda":
        return max(ON_CPU, *lengths)
    own = _largest(lambda positions: _bytes_taken(loss, positions, max(lengths), accelerator), max(lengths), _room())
    found = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).min())
    logs.get("train").info(f"training.batch_tokens: {found:,} positions a forward pass fit into the GPU's memory")
    return found


def _largest(taken: Callable[[int], float | None], longest: int, room: float) -> int:
    """Return the largest budget whose forward and backward pass stay within `room`.

    Args:
        taken: bytes that a pass of so many positions takes at its peak; None: more than there are.
        longest: positions of the longest sample.
        room: bytes.

    Raises:
        InputError: not even the longest sample fits.
    """
    budget, best = longest, 0
    while budget <= LARGEST:
        peak = taken(budget)
        if peak is None or peak > room:
            break
        best, budget = budget, budget * 2
    if not best:
        raise InputError(
            f"train: not even one conversation of {longest:,} positions fits into the GPU's memory. Set "
            "training.gradient_checkpointing=true, or prepare with a smaller data.max_text_tokens."
        )
    between = best + best // 2
    peak = taken(between) if between < LARGEST else None
    return between if peak is not None and peak <= room else best


def _room() -> float:
    free, _ = torch.cuda.mem_get_info()
    return _ROOM * (free + torch.cuda.memory_reserved())


def _bytes_taken(loss: SupervisedLoss, positions: int, longest: int, accelerator: Accelerator) -> float | None:
    """Run one forward and backward pass of the densest kind, all text supervised, and return its peak."""
    device = accelerator.device
    rows = positions // longest
    ids = torch.ones((rows, longest), dtype=torch.int64, device=device)
    places = torch.arange(rows * longest - 1, device=device)
    nowhere = torch.empty(0, dtype=torch.int64, device=device)
    batch = Batch(ids, nowhere, places, torch.ones_like(places), [], list(range(rows)), ids.numel())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with accelerator.autocast():
            loss.train()
            loss(batch, None).backward()
        return float(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return None
    finally:
        loss.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
