"""Attention over a stream: each run of positions sees itself and what it continues, and no mask keeps the others out.

A stream (see `model.stream`) holds many conversations end to end. Which keys a run of positions may see is an index:
the opening and the image that it continues, then its own words. Transformers calls `attend` through its public
AttentionInterface; being registered there without a mask is what keeps transformers from building one.

On a GPU one kernel takes all runs at once (`torch.nn.attention.varlen`). Elsewhere runs of like length are put side by
side, padded for the attention alone, and `scaled_dot_product_attention` computes each group.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError

NAME = "stream"  # by which transformers knows `attend`
KINDS = {"full_attention", "sliding_attention"}
_ALIKE = 0.85  # of the longest run that others of its group are padded to


@dataclasses.dataclass(frozen=True)
class Runs:
    """N runs of positions that follow each other without a gap, and what each continues.

    Attributes:
        own: where the run begins and ends in the stream, int64 (N, 2).
        before: where the positions that it continues begin and end, int64 (N, 2); equal numbers: it continues nothing.
    """

    own: np.ndarray
    before: np.ndarray

    @property
    def pairs(self) -> int:
        """Sum of what attention costs: length squared, less what was computed for the run that is continued."""
        before = np.diff(self.before)[:, 0]
        return int(((before + np.diff(self.own)[:, 0]) ** 2 - before**2).sum())

    def packed(self, device: torch.device) -> Packed:
        """Return them as the kernel for sequences of different lengths takes them."""
        own, before = np.diff(self.own)[:, 0], np.diff(self.before)[:, 0]
        keys = [np.arange(*span) for pair in zip(self.before, self.own, strict=True) for span in pair]
        ends = [np.cumsum([0, *lengths]).astype(np.int32) for lengths in (own, before + own)]
        places, query_ends, key_ends = (_moved(array, device) for array in (np.concatenate(keys), *ends))
        # A bound is enough for the kernel, and every other number would be compiled anew.
        longest = 1 << int((before + own).max() - 1).bit_length()
        return Packed(places, query_ends, key_ends, longest)

    def groups(self, device: torch.device) -> Groups:
        """Return them cut into groups of like length."""
        own, before = np.diff(self.own)[:, 0], np.diff(self.before)[:, 0]
        members: list[list[int]] = []
        for run in np.lexsort((-own, before)):
            first = members[-1][0] if members else -1
            if members and before[run] == before[first] and own[run] >= _ALIKE * own[first]:
                members[-1].append(run)
            else:
                members.append([run])
        total, start = int(self.own[-1, 1]), 0
        back, found = np.empty(total, np.int64), []
        for group in members:
            length, continued = int(own[group[0]]), int(before[group[0]])
            steps = np.arange(length)
            # What a short run is padded with is its last position again: only padding sees it, and nobody reads that.
            queries = self.own[group, :1] + np.minimum(steps, own[group][:, None] - 1)  # (R, L)
            keys = np.concatenate([self.before[group, :1] + np.arange(continued), queries], axis=1)  # (R, B + L)
            for row, run in enumerate(group):
                back[self.own[run, 0] : self.own[run, 1]] = start + row * length + steps[: own[run]]
            start += queries.size
            found.append(Group(_moved(queries, device), _moved(keys, device)))
        return Groups(tuple(found), _moved(back, device))


@dataclasses.dataclass(frozen=True)
class Packed:
    """Runs for one kernel.

    Attributes:
        keys: places of the keys that the runs see, run by run, int64 (K,).
        query_ends: where each run ends among T positions, after a 0, int32 (N + 1,).
        key_ends: the same among K keys.
        longest: at least the keys of the longest run.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: int


@dataclasses.dataclass(frozen=True)
class Group:
    """R runs of about L positions that each continue B others.

    Attributes:
        queries: int64 (R, L).
        keys: int64 (R, B + L).
        masks: by window and dtype, as they are first asked for.
    """

    queries: Tensor
    keys: Tensor
    masks: dict[Any, Tensor] = dataclasses.field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores, (L, B + L), or None where plain causality says it all."""
        rows, columns = self.queries.shape[1], self.keys.shape[1]
        if window is not None and window >= columns:
            window = None
        if rows == columns and window is None:
            return None
        known = self.masks.get((window, dtype))
        if known is None:
            places = torch.arange(columns, device=self.keys.device)
            distance = places[columns - rows :, None] - places
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            known = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self.masks[window, dtype] = known
        return known


@dataclasses.dataclass(frozen=True)
class Groups:
    """All runs of a stream in groups.

    Attributes:
        members: the groups.
        back: where each of the T positions stands in what the groups give one after the other, int64 (T,).
    """

    members: tuple[Group, ...]
    back: Tensor


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    runs: Packed | Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what each position takes from those that it sees, (1, T, H, d).

    Args:
        module: the attention layer.
        query: (1, H, T, d).
        key: (1, G, T, d); H / G queries share one of G heads.
        value: as `key`.
        attention_mask: None; transformers makes none for this attention.
        runs: what sees what.
        scaling: of scores; None: 1 / sqrt(d).
        dropout: of weights.
        sliding_window: how many positions a position sees, its own counted; None: all before it.
    """
    assert attention_mask is None
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # the position's angles may have brought queries and keys back to float32
        query, key, value = (part.to(torch.get_autocast_dtype(kind)) for part in (query, key, value))
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, d)
    if isinstance(runs, Packed):
        return _varlen(query, key, value, runs, scaling, sliding_window)[None], None
    return _grouped(query, key, value, runs, scaling, dropout, sliding_window)[None], None


AttentionInterface.register(NAME, attend)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, runs: Packed, scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    keys, values = key.index_select(0, runs.keys), value.index_select(0, runs.keys)  # (K, G, d)
    more: dict[str, Any] = {}
    if keys.shape[1] != query.shape[1]:
        if _shares_heads():
            more["enable_gqa"] = True
        else:  # torch before 2.12
            keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (keys, values))
    # The kernel counts the positions before one's own.
    sees = (-1 if window is None else window - 1, 0)
    longest = runs.longest
    ends = (runs.query_ends, runs.key_ends)
    query = query.contiguous()  # heads stood before positions; what is compiled counts on the kernel's own layout
    result: Tensor = varlen_attn(query, keys, values, *ends, longest, longest, scale=scaling, window_size=sees, **more)
    return result


@functools.cache
def _shares_heads() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, runs: Groups, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    found = []
    for group in runs.members:
        queries, keys = group.queries, group.keys
        q, k, v = (
            part.index_select(0, places.flatten()).view(*places.shape, *part.shape[1:]).transpose(1, 2)
            for part, places in ((query, queries), (key, keys), (value, keys))
        )  # (R, heads, L or B + L, d)
        mask = group.mask(window, query.dtype)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        found.append(out.transpose(1, 2).flatten(0, 1))  # (R * L, H, d)
    return torch.cat(found).index_select(0, runs.back)


def use_streams(language: PreTrainedModel) -> None:
    """Have a language model attend over streams; what else it computes stays as it is.

    Raises:
        InputError: its attention cannot be replaced, or is of a kind that streams do not know.
    """
    text = language.config
    kinds = set(getattr(text, "layer_types", None) or [])
    name = type(language).__name__
    if kinds - KINDS:
        reason = f"it has layers of kind {', '.join(sorted(kinds - KINDS))}"
    elif getattr(text, "use_bidirectional_attention", None):
        reason = "it attends both ways"
    elif not getattr(language, "_supports_attention_backend", False):
        reason = "transformers offers no way to replace its attention"
    else:
        language.set_attn_implementation(NAME)
        return
    raise InputError(f"model.language: {name} cannot be trained here: {reason}. Give another language model.")


@contextlib.contextmanager
def streaming(language: PreTrainedModel) -> Iterator[None]:
    """Have a language model attend over streams inside the block; see `use_streams`."""
    before = language.config._attn_implementation
    use_streams(language)
    try:
        yield
    finally:
        language.set_attn_implementation(before)


def choose_kernel(asked: str, language: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """Return how attention over streams is computed: "varlen" or "sdpa".

    Args:
        asked: training.attention.
        language: the language model.
        device: where it computes.
        dtype: in which it computes.

    Raises:
        InputError: varlen was asked for where there is none.
    """
    if asked == "sdpa":
        return asked
    reason = obstacle(language.config, device, dtype)
    if reason is None:
        return "varlen"
    if asked == "varlen":
        raise InputError(f"config: training.attention=varlen cannot be: {reason}. Set training.attention=auto or sdpa.")
    if device.type == "cuda":
        logs.get("train").warning(f"attention is computed run by run, which is slower: {reason}")
    return "sdpa"


def obstacle(text: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why the kernel for sequences of different lengths does not serve; None: it does, tried forward and back."""
    if device.type != "cuda":
        return f"torch has no such kernel for {device.type}"
    if getattr(text, "attention_dropout", 0.0):
        return "the kernel knows no dropout of attention weights"
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shared = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    runs = Runs(np.array([[0, 8], [8, 16]]), np.array([[0, 0], [0, 4]])).packed(device)
    heads = (text.num_attention_heads, shared, shared)
    query, key, value = (
        torch.randn(16, count, width, device=device, dtype=dtype, requires_grad=True) for count in heads
    )
    try:
        _varlen(query, key, value, runs, None, 4).sum().backward()
        torch.cuda.synchronize(device)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
