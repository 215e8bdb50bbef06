"""Which pictures are held out for validation: decided by the picture itself, so it never changes.

A conversation follows its picture, whatever name it gives it, and a picture's near copies follow it too, so nothing is
seen in training and in validation. The draw depends on the bytes of the picture, the seed and the fraction alone: when
data is added, removed or reordered, every other picture stays where it was. A conversation without a picture is drawn
by its text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from multimodal_gemma.data.conversations import Conversation

TRAIN, VALIDATION = "train", "val"
_RANGE = 2.0**64


def split_of(key: str, *, fraction: float, seed: int) -> str:
    """Return "train" or "val".

    Args:
        key: `picture_key`; for a conversation without a picture, `text_key`.
        fraction: expected share of "val", in [0, 1].
        seed: another seed holds other pictures out.

    Returns:
        "val" if the first 64 bits of sha256("multimodal-gemma/split:{seed}:{key}"), as a fraction of 2^64, lie below
        `fraction`.
    """
    digest = hashlib.sha256(f"multimodal-gemma/split:{seed}:{key}".encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8], "big") / _RANGE < fraction else TRAIN


def picture_key(digest: str) -> str:
    """Return the key by which a picture is split, by the sha256 of its file."""
    return f"image:{digest}"


def text_key(conversation: Conversation) -> str:
    """Return the key by which a conversation without a picture is split: equal texts have equal keys."""
    told = hashlib.sha256()
    for turn in conversation.turns:
        told.update(f"{turn.role}\x1f{turn.text}\x1e".encode())
    return f"text:{told.hexdigest()}"


def eldest(digests: Sequence[str], groups: np.ndarray) -> dict[str, str]:
    """Return for each picture that has near copies the one whose draw they all follow, by sha256.

    Args:
        digests: sha256 of the pictures.
        groups: a number for each, (n,); near copies have the same.

    Returns:
        The smallest sha256 of the group; pictures without a near copy are not in it.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(size[group] > 1).tolist()
    first: dict[int, str] = {}
    for row in rows:
        number = int(group[row])
        first[number] = min(first.get(number, digests[row]), digests[row])
    return {digests[row]: first[int(group[row])] for row in rows}
