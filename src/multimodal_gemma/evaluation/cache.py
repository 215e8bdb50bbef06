"""The keys and values of one prompt prefix, shared out to many questions.

The stock dynamic cache grows by concatenation, which copies everything at each token. Here the room for a short answer
is reserved at once. All positions are kept, whatever a layer's sliding window: the window is a matter of the mask (see
`mask`).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _Reserved(DynamicLayer):
    """Keys and values of one layer, (rows, heads, positions, head width), with room for `room` positions more."""

    def __init__(self, source: Any, rows: torch.Tensor, room: int) -> None:
        super().__init__()
        self._buffers = [self._reserve(tensor, rows, room) for tensor in (source.keys, source.values)]
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True
        self._show(source.keys.shape[-2])

    @staticmethod
    def _reserve(prefix: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
        images, heads, length, width = prefix.shape
        buffer = prefix.new_empty(len(rows), heads, length + room, width)
        buffer[:, :, :length] = prefix[rows] if images > 1 else prefix
        return buffer

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append positions and return all."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only some rows."""
        length = self.keys.shape[-2]
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(length)


def repeated(prefix: Cache, rows: torch.Tensor, room: int) -> Cache:
    """Copy the prefix of some images to the rows that ask about them.

    Args:
        prefix: cache of a forward pass over (images, positions); left as it is.
        rows: image index of each row, (rows,), int64.
        room: positions that may be appended.
    """
    return Cache(layers=[_Reserved(layer, rows, room) for layer in prefix.layers])


def mask(
    query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the additive attention mask of queries over cached keys, by their positions in the text.

    Right padding inside a batch of suffixes leaves holes in the cache, so a slot's number is not its position:
    causality and sliding window are decided on positions, as if each row stood alone.

    Args:
        query: position of each query, (rows, queries), int64.
        key: position of each cached slot, (rows, slots), int64.
        valid: whether the slot holds a token, (rows, slots), bool.
        window: a key further back than this many positions is out of sight; None: nothing is.
        dtype: of the model.

    Returns:
        (rows, 1, queries, slots): 0 where seen, the dtype's minimum elsewhere.
    """
    distance = query[:, :, None] - key[:, None, :]
    seen = valid[:, None, :] & (distance >= 0)
    if window is not None:
        seen &= distance < window
    blocked = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return blocked.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def by_kind(text_config: Any, full: torch.Tensor, sliding: torch.Tensor) -> Any:
    """Return what a language model takes as attention_mask, so that each kind of its layers gets its own.

    Args:
        text_config: the language model's configuration.
        full: mask of layers that see everything before a position.
        sliding: mask of layers with a sliding window.
    """
    kinds = sorted(set(getattr(text_config, "layer_types", None) or []))
    if len(kinds) == 2:
        return {"full_attention": full, "sliding_attention": sliding}
    # One kind of layer takes its mask as it is.
    window = getattr(text_config, "sliding_window", None)
    return sliding if kinds == ["sliding_attention"] or (not kinds and window is not None) else full
