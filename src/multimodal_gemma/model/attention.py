"""Attention masks over cached keys, for language models whose layers see everything or a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KINDS = {"full_attention", "sliding_attention"}


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: 0 where `seen`, the dtype's minimum elsewhere, with a dimension for heads.

    Args:
        seen: bool (rows, queries, keys).
        dtype: of the model.

    Returns:
        (rows, 1, queries, keys).
    """
    blocked = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return blocked.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def by_kind(text_config: Any, full: Tensor, sliding: Tensor) -> Any:
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


def takes_masks(language_model: Any) -> bool:
    """Tell whether a language model takes masks that were prepared by kind, and attends to what came before only."""
    text = language_model.config
    kinds = set(getattr(text, "layer_types", None) or [])
    return (
        kinds <= KINDS
        and not getattr(text, "use_bidirectional_attention", None)
        and bool(getattr(language_model, "_supports_attention_backend", False))
    )
