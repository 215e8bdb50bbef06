"""Which of the right conversations a run learns from: filters, and a seeded draw.

Download asks this too, so that the images of conversations that nobody will learn from are not fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import DataConfig

KEYS = ("limit", "limit_seed", "min_turns", "max_turns", "min_characters", "max_characters", "kinds")
_KINDS = ("single", "multi", "text")

Left = tuple[Conversation, str, str]
"""A conversation that is left out, the reason as a word to count by, and in words."""


def keys(data: DataConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides what is selected."""
    return {key: getattr(data, key) for key in KEYS}


def kind_of(conversation: Conversation) -> str:
    """Return "text" without an image, "single" for one question about it, "multi" for more."""
    if conversation.image is None:
        return "text"
    return "single" if len(conversation.turns) <= 2 else "multi"


def select(conversations: list[Conversation], data: DataConfig) -> tuple[list[Conversation], list[Left]]:
    """Split conversations into those to learn from and the others.

    A conversation is a duplicate if an earlier one has the same image and turns. The draw ranks conversations by a hash
    of their content, so it depends neither on their order nor on how many there are.

    Args:
        conversations: all of the dataset's.
        data: the filters, the limit and its seed.

    Returns:
        The selected ones in their order, and the others with the reason of each.

    Raises:
        InputError: data.kinds names no known kind, or nothing is left.
    """
    unknown = [kind for kind in data.kinds if kind not in _KINDS]
    if unknown or not data.kinds:
        raise InputError(f"config: data.kinds={data.kinds} is not allowed. Choose from {', '.join(_KINDS)}.")
    left: list[Left] = []
    kept: list[tuple[bytes, Conversation]] = []
    seen: set[bytes] = set()
    for conversation in conversations:
        digest = _digest(conversation, data.limit_seed)
        kind, reason = _fault(conversation, data)
        if not kind and digest in seen:
            kind, reason = "duplicate", "an earlier conversation has the same image and turns"
        if kind:
            left.append((conversation, kind, reason))
        else:
            seen.add(digest)
            kept.append((digest, conversation))
    if data.limit is not None and len(kept) > data.limit:
        last = sorted(digest for digest, _ in kept)[data.limit - 1]
        reason = f"not among the {data.limit:,} that were drawn"
        left += [(conversation, "not-drawn", reason) for digest, conversation in kept if digest > last]
        kept = [(digest, conversation) for digest, conversation in kept if digest <= last]
    if not kept:
        reasons = ", ".join(sorted({kind for _, kind, _ in left}))
        raise InputError(
            f"conversations: zero usable conversations; all {len(left):,} are filtered out ({reasons}). "
            "Widen data.kinds, data.min_turns and the other filters."
        )
    return [conversation for _, conversation in kept], left


def _fault(conversation: Conversation, data: DataConfig) -> tuple[str, str]:
    return next(_faults(conversation, data), ("", ""))


def _faults(conversation: Conversation, data: DataConfig) -> Iterator[tuple[str, str]]:
    turns, kind = len(conversation.turns), kind_of(conversation)
    empty = [number for number, turn in enumerate(conversation.turns) if not turn.text.strip()]
    if empty:
        yield "empty-turn", f"its turn {empty[0]} is empty"
    if kind not in data.kinds:
        yield "other-kind", f"its kind is {kind}; data.kinds asks for {', '.join(data.kinds)}"
    if turns < data.min_turns or (data.max_turns is not None and turns > data.max_turns):
        yield "turns", f"it has {turns} turns, outside data.min_turns and data.max_turns"
    length = sum(len(turn.text) for turn in conversation.turns)
    if length < data.min_characters or (data.max_characters is not None and length > data.max_characters):
        yield "length", f"it has {length:,} characters, outside data.min_characters and data.max_characters"


def _digest(conversation: Conversation, seed: int) -> bytes:
    text = "\x1f".join((conversation.image or "", *(turn.text for turn in conversation.turns)))
    return hashlib.sha256(f"multimodal-gemma/limit:{seed}:{text}".encode()).digest()
