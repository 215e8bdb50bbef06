"""Which of the right conversations a run learns from, and which it is validated on.

Chosen before any image is asked for (filters, each set's share, a seeded draw), so that nobody fetches what nobody will
learn from. A conversation that is not drawn is no loss; one that a filter leaves out is, and has a reason.

Validation is decided by the picture itself, so it never changes: a conversation follows its picture, whatever name it
gives it, and a picture's near copies follow it too, so nothing is seen in training and in validation. When data is
added, removed or reordered, every other picture stays where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import DataConfig

KEYS = ("limit", "limit_seed", "min_turns", "max_turns", "min_characters", "max_characters", "kinds")
TRAIN, VALIDATION = "train", "val"
EXAMPLES = 5  # kept of each reason
_KINDS = ("single", "multi", "text")
_SHARE = re.compile(r"(?P<uri>.*?)(?:#(?P<count>\d{1,12})|\*(?P<weight>\d{1,12}(?:\.\d{1,12})?))?")
_NO_SHARE = re.compile(r".*[#*]\s*[-+.\d]*(e[-+]?\d*|nan|inf(inity)?)?", re.IGNORECASE)  # meant as one
_MOST = 1_000  # times a set may be learnt from in one pass


@dataclasses.dataclass(frozen=True)
class Share:
    """How much of a set is learnt from."""

    uri: str  # the set
    count: int | None = None  # so many of its conversations at most; None: no such limit
    weight: float = 1.0  # so many times its number; 0.5 draws half, 2 takes each twice

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that `URI`, `URI#COUNT` or `URI*WEIGHT` asks for.

        Raises:
            InputError: it asks for nothing.
        """
        found = _SHARE.fullmatch(text)
        assert found is not None  # the location may be anything
        count, weight = found["count"], found["weight"]
        if _NO_SHARE.fullmatch(found["uri"]) or float(weight or 1) > _MOST:
            raise InputError(
                f"config: data.conversations has {text[:200]}, which is no share. Write URI#COUNT, or URI*WEIGHT up to "
                f"{_MOST:,}."
            )
        if (count and not int(count)) or (weight and not float(weight)):
            raise InputError(f"config: data.conversations asks for nothing of {found['uri']}. Leave it out.")
        return cls(found["uri"], int(count) if count else None, float(weight or 1))


@dataclasses.dataclass
class Left:
    """What is not learnt from one set."""

    given: int = 0  # conversations and faults in the set
    kept: int = 0  # how many are learnt, each time counted
    not_drawn: int = 0  # right ones that no draw took
    dropped: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # count and examples by reason

    def drop(self, index: int, identity: str, kind: str, reason: str) -> None:
        """Count one that is left out, and keep it if it is among the first of its kind."""
        entry = self.dropped.setdefault(kind, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append({"index": index, "id": identity, "reason": reason})

    @property
    def losses(self) -> int:
        """How many were dropped."""
        return sum(entry["count"] for entry in self.dropped.values())


def keys(data: DataConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides what is chosen."""
    return {key: getattr(data, key) for key in KEYS}


def choose(
    sets: Mapping[str, Sequence[Conversation]], shares: Mapping[str, Share], left: Mapping[str, Left], data: DataConfig
) -> list[Conversation]:
    """Return the conversations to learn from, set by set in their order.

    A conversation is a duplicate if an earlier one has the same image and turns. A draw ranks conversations by a hash
    of their content, so it depends neither on their order nor on how many there are.

    Args:
        sets: the right conversations by set.
        shares: how much of each.
        left: receives what is left out.
        data: the filters, the limit and its seed.

    Raises:
        InputError: data.kinds names no known kind, or nothing is left.
    """
    unknown = [kind for kind in data.kinds if kind not in _KINDS]
    if unknown or not data.kinds:
        raise InputError(f"config: data.kinds={data.kinds} is not allowed. Choose from {', '.join(_KINDS)}.")
    kept: list[tuple[bytes, str, Conversation]] = []
    seen: set[bytes] = set()
    for name, conversations in sets.items():
        usable: list[tuple[bytes, str, Conversation]] = []
        for index, conversation in enumerate(conversations):
            digest = _digest(conversation, data.limit_seed)
            kind, reason = next(_faults(conversation, data), ("", ""))
            if not kind and digest in seen:
                kind, reason = "duplicate", "an earlier conversation has the same image and turns"
            if kind:
                left[name].drop(index, conversation.id, kind, reason)
            else:
                seen.add(digest)
                usable.append((digest, name, conversation))
        taken = _share(usable, shares[name])
        left[name].not_drawn = len(usable) - len({digest for digest, *_ in taken})
        kept += taken
    if data.limit is not None and len(kept) > data.limit:
        last = sorted(digest for digest, *_ in kept)[data.limit - 1]
        for name in {name for digest, name, _ in kept if digest > last}:
            left[name].not_drawn += len({digest for digest, own, _ in kept if own == name and digest > last})
        kept = [item for item in kept if item[0] <= last]
    if not kept:
        raise _nothing(left)
    for name, count in Counter(name for _, name, _ in kept).items():
        left[name].kept = count
    return [conversation for *_, conversation in kept]


def kind_of(conversation: Conversation) -> str:
    """Return "text" without an image, "single" for one question about it, "multi" for more."""
    if conversation.image is None:
        return "text"
    return "single" if len(conversation.turns) <= 2 else "multi"


def _share(usable: list[tuple[bytes, str, Conversation]], share: Share) -> list[tuple[bytes, str, Conversation]]:
    whole = int(share.weight)
    wanted = share.count if share.count is not None else round((share.weight - whole) * len(usable))
    copies = 0 if share.count is not None else whole
    last = sorted(digest for digest, *_ in usable)[: min(wanted, len(usable))][-1:]
    drawn = [item for item in usable if last and item[0] <= last[0]]
    return [*(item for item in usable for _ in range(copies)), *drawn]


def _nothing(left: Mapping[str, Left]) -> InputError:
    reasons = sorted({kind for entry in left.values() for kind in entry.dropped})
    count = sum(entry.losses for entry in left.values())
    if not count:
        return InputError(
            "conversations: the shares in data.conversations draw none of "
            f"{sum(one.given for one in left.values()):,}. Raise a count or a weight."
        )
    if reasons == ["empty-turn"]:
        return InputError(
            f"conversations: zero usable conversations; each of the {count:,} has an empty turn, so there is nothing "
            "to learn. Give conversations with answers."
        )
    return InputError(
        f"conversations: zero usable conversations; all {count:,} are left out ({', '.join(reasons)}). "
        "Widen data.kinds, data.min_turns and the other filters."
    )


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


def split_of(key: str, *, fraction: float, seed: int) -> str:
    """Return "train" or "val".

    Args:
        key: "image:" and the sha256 of a picture's file; for a conversation without a picture, `text_key`.
        fraction: expected share of "val", in [0, 1].
        seed: another seed holds other pictures out.

    Returns:
        "val" if the first 64 bits of sha256("multimodal-gemma/split:{seed}:{key}"), as a fraction of 2^64, lie below
        `fraction`.
    """
    digest = hashlib.sha256(f"multimodal-gemma/split:{seed}:{key}".encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8], "big") / 2.0**64 < fraction else TRAIN


def text_key(conversation: Conversation) -> str:
    """Return the key by which a conversation without a picture is split: equal texts have equal keys."""
    told = "".join(f"{turn.role}\x1f{turn.text}\x1e" for turn in conversation.turns)
    return f"text:{hashlib.sha256(told.encode()).hexdigest()}"


def eldest(digests: Sequence[str], groups: np.ndarray) -> dict[str, str]:
    """Return for each picture that has near copies the one whose draw they all follow, by sha256.

    Args:
        digests: sha256 of the pictures.
        groups: a number for each, (n,); near copies have the same.

    Returns:
        The smallest sha256 of the group; pictures without a near copy are not in it.
    """
    members: dict[int, list[str]] = defaultdict(list)
    for digest, group in zip(digests, groups.tolist(), strict=True):
        members[group].append(digest)
    return {digest: first for held in members.values() if len(held) > 1 for first in [min(held)] for digest in held}
