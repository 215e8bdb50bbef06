"""Which images are held out for validation: decided by the image's own name, so it never changes.

A conversation follows its image, so no picture is seen in training and in validation. Whether an image is held out
depends on its id, the seed and the fraction alone: when data is added, removed or reordered, every other image
stays where it was.
"""

from __future__ import annotations

import hashlib

TRAIN, VALIDATION = "train", "val"
_RANGE = 2.0**64


def split_of(key: str, *, fraction: float, seed: int) -> str:
    """Return "train" or "val".

    Args:
        key: the image's id; for a conversation without an image, `text_key` of its id.
        fraction: expected share of "val", in [0, 1].
        seed: another seed holds other images out.

    Returns:
        "val" if the first 64 bits of sha256("multimodal-gemma/split:{seed}:{key}"), as a fraction of 2^64, lie below
        `fraction`.
    """
    digest = hashlib.sha256(f"multimodal-gemma/split:{seed}:{key}".encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8], "big") / _RANGE < fraction else TRAIN


def text_key(conversation_id: str) -> str:
    """Return the key by which a conversation without an image is split."""
    return f"text:{conversation_id}"
