"""Cross-entropy over a large vocabulary without its logits: loss and gradient in one pass over the head's weight.

All logits of a step are its largest tensor by far (800 MB in float32 for 780 supervised tokens of Gemma-3's 262,144
words), and softmax and its gradient read and write them again and again. Here they exist in pieces, and with each piece
its share of the gradients: of the products over the vocabulary none is computed twice, and nothing of the vocabulary's
size is kept for the backward pass but the gradient of a head that learns.

On a processor the pieces are words, whose logits stay in its cache; the softmax is accumulated over them with a running
maximum, as by Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). On a GPU, and for a head that
learns or caps its logits, the pieces are rows: what lies between the two products is then one function of a row, which
a GPU computes in one compiled kernel or two.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_WORDS = 4096  # of the vocabulary at a time; measured on a processor: 1024 to 4096 are equal, 16,384 is 7% slower
_ROWS_ON_CPU = 256
_ROWS_ON_GPU = 2048  # 1 GB of bf16 logits over 262,144 words; not measured on a GPU yet


def vocabulary_loss(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """Return the summed cross-entropy of the logits `hidden @ weight.T`, in nats, float32 ().

    Products are computed in the autocast's dtype or else the weight's, the softmax and all sums in float32. Gradients
    reach `hidden`, and `weight` where it learns.

    Args:
        hidden: states that predict a token each, (S, D).
        weight: of a linear head without bias, (vocabulary, D).
        targets: the tokens, int64 (S,).
        cap: bounds logits by cap * tanh(logits / cap), as Gemma 2 does; None: they are as they are.
    """
    loss: Tensor = _Entropy.apply(hidden, weight, targets, cap)
    return loss


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wanted = ctx.needs_input_grad[:2]
        with torch.autocast(kind, enabled=False):
            by_words = kind == "cpu" and not wanted[1] and cap is None
            computed = _by_words if by_words else functools.partial(_by_rows, cap=cap)
            loss, *gradients = computed(hidden.to(dtype), weight, targets, wanted)
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.wanted, ctx.dtypes = wanted, (hidden.dtype, weight.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), at_one = gradients, iter(ctx.saved_tensors)
        found = [
            (next(at_one) * gradient).to(dtype) if wanted else None
            for wanted, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
        ]
        return *found, None, None


_Result = tuple[Tensor, Tensor | None, Tensor | None]  # loss, and its gradients for states and weight


def _by_words(states: Tensor, weight: Tensor, targets: Tensor, wanted: tuple[bool, bool]) -> _Result:
    rows, single = len(states), states.dtype == torch.float32
    own = weight[targets].to(states.dtype)  # (S, D)
    largest = states.new_full((rows, 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(largest)  # of exp(logit - largest)
    mean = torch.zeros_like(states, dtype=torch.float32) if wanted[0] else None  # of the words' weights, by likelihood
    space = states.new_empty(rows * min(_WORDS, len(weight)))
    for piece in weight.split(_WORDS):
        piece = piece.to(states.dtype)
        logits = torch.mm(states, piece.T, out=space[: rows * len(piece)].view(rows, len(piece))).float()
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        shrunk = (before - largest).exp_()  # what was summed under a lower maximum counts less from now on
        likely = logits.sub_(largest).exp_()
        total = total.mul_(shrunk).add_(likely.sum(1, keepdim=True))
        if mean is not None:
            mean.mul_(shrunk)
            mean = mean.addmm_(likely, piece) if single else mean.add_(likely.to(states.dtype) @ piece)
    loss = (largest + total.log()).sum() - (states.float() * own.float()).sum()
    return loss, None if mean is None else mean.div_(total).sub_(own), None


def _by_rows(
    states: Tensor, weight: Tensor, targets: Tensor, wanted: tuple[bool, bool], *, cap: float | None
) -> _Result:
    on_gpu = states.device.type == "cuda"
    size, step = (_ROWS_ON_GPU, _compiled()) if on_gpu else (_ROWS_ON_CPU, _softmax)
    words = weight.to(states.dtype)
    loss = torch.zeros((), device=states.device)
    for_states = torch.zeros_like(states, dtype=torch.float32) if wanted[0] else None
    for_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    for start in range(0, len(states), size):
        part, aims = states[start : start + size], targets[start : start + size]
        entropies, slopes = step(part @ words.T, aims, cap)
        loss += entropies.sum()
        if for_states is not None:
            for_states[start : start + size] = slopes @ words
        if for_weight is not None:
            for_weight += slopes.T @ part
    return loss, for_states, for_weight


def _softmax(logits: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Return each row's entropy, float32 (S,), and the entropy's gradient for the logits, in their dtype."""
    raw = logits.float()
    bent = None if cap is None else torch.tanh(raw / cap)
    seen = raw if cap is None or bent is None else bent * cap
    total = torch.logsumexp(seen, dim=1, keepdim=True)
    right = torch.arange(seen.shape[1], device=seen.device) == targets[:, None]  # no scatter: it would not be fused
    slopes = (seen - total).exp() - right.float()
    if bent is not None:
        slopes = slopes * (1 - bent * bent)
    return total[:, 0] - seen.gather(1, targets[:, None])[:, 0], slopes.to(logits.dtype)


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]:
    return torch.compile(_softmax, dynamic=True) if has_c_compiler() else _softmax


def has_c_compiler() -> bool:
    """Tell whether Triton, by which torch.compile makes kernels of a GPU, finds the C compiler that it needs."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
