"""What a dataset is like, in figures that are gathered while it is made.

Everything is counted in one pass and kept small, so that the figures of 157,712 conversations cost megabytes. The
result is plain JSON for machines; `report` draws it for people.
"""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gemma import files
from multimodal_gemma.data.conversations import Conversation

SCHEMA_VERSION = 1
_EXAMPLES = 5  # of each reason for which something was dropped
_FREQUENT = 30  # answers listed
_SHORT_ANSWER = 60  # characters; a longer answer hardly ever repeats, and a table of them would only cost memory
_BINS = 40


@dataclasses.dataclass(frozen=True)
class Dropped:
    """One thing that was left out or cut; a line of dropped.jsonl."""

    what: str  # "image", "conversation", or "turns" (the conversation stays, shortened)
    id: str  # the conversation's id, or the image's file name
    image: str  # file name of the image that is concerned; "" for none
    kind: str  # the reason as a word to count by
    reason: str  # the reason in words


def _numbers() -> array.array[int]:
    return array.array("i")  # four bytes each, where a list takes eight and an object


@dataclasses.dataclass
class SplitFigures:
    """What is gathered about one split; each list has one number a conversation."""

    text_tokens: array.array[int] = dataclasses.field(default_factory=_numbers)
    positions: array.array[int] = dataclasses.field(default_factory=_numbers)
    supervised_tokens: array.array[int] = dataclasses.field(default_factory=_numbers)
    turns: array.array[int] = dataclasses.field(default_factory=_numbers)
    images: set[int] = dataclasses.field(default_factory=set)
    text_only: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return counts and distributions."""
        numbers = ("text_tokens", "positions", "supervised_tokens", "turns")
        return {
            "conversations": len(self.turns),
            "images": len(self.images),
            "text_only": self.text_only,
            **{name: distribution(getattr(self, name)) for name in numbers},
        }


class Statistics:
    """Gathers figures; `to_json` returns them.

    Args:
        image_tokens: positions that an image takes; may be set later, before the first conversation is added.
    """

    def __init__(self, image_tokens: int = 0) -> None:
        self.image_tokens = image_tokens
        self.splits = {"train": SplitFigures(), "val": SplitFigures()}
        self.dropped: list[Dropped] = []
        self.moved_images = 0  # conversations whose image was put before the question
        self.near_copies = 0  # pictures that look like another one of the dataset
        self.sets: dict[str, dict[str, Any]] = {}  # what download says of each set: given, kept, not_drawn, dropped
        self._of_sets: collections.Counter[tuple[str, str]] = collections.Counter()
        self._answers: collections.Counter[str] = collections.Counter()
        self.answer_words = _numbers()
        self._formats: collections.Counter[str] = collections.Counter()
        self._modes: collections.Counter[str] = collections.Counter()
        self._widths, self._heights = _numbers(), _numbers()

    def add_image(self, kind: str, mode: str, width: int, height: int) -> None:
        """Count a usable image by its format, its mode and its size in pixels before resizing."""
        self._formats[kind] += 1
        self._modes[mode] += 1
        self._widths.append(width)
        self._heights.append(height)

    def add_conversation(
        self, split: str, conversation: Conversation, tokens: int, supervised: int, turns: int, image_index: int
    ) -> None:
        """Count a conversation as it stands in a split.

        Args:
            split: "train" or "val".
            conversation: as published.
            tokens: that it became, an image counted as one.
            supervised: how many of them are learnt.
            turns: how many of its turns are in it.
            image_index: row of its image, -1 for text only.
        """
        figures, with_image = self.splits[split], image_index >= 0
        self._of_sets[conversation.set, split] += 1
        figures.text_tokens.append(tokens - with_image)
        figures.positions.append(tokens + (self.image_tokens - 1) * with_image)
        figures.supervised_tokens.append(supervised)
        figures.turns.append(turns)
        if with_image:
            figures.images.add(image_index)
        else:
            figures.text_only += 1
        for turn in conversation.turns[:turns]:
            if turn.role == "assistant":
                self.answer_words.append(len(turn.text.split()))
                if len(turn.text) <= _SHORT_ANSWER:
                    self._answers[turn.text.strip()] += 1

    def drop(self, what: str, identity: str, image: str, kind: str, reason: str) -> None:
        """Record what is left out or cut, and why."""
        self.dropped.append(Dropped(what, identity, image, kind, reason))

    def write_dropped(self, path: Path) -> None:
        """Write what was left out or cut, a line each."""
        files.write_jsonl(path, [dataclasses.asdict(item) for item in self.dropped])

    def to_json(self) -> dict[str, Any]:
        """Return every figure; equal datasets give equal figures."""
        return {
            "schema_version": SCHEMA_VERSION,
            "splits": {name: figures.to_json() for name, figures in self.splits.items()},
            "answers": {
                "count": len(self.answer_words),
                "words": distribution(self.answer_words),
                "most_frequent": [list(item) for item in _by_count(self._answers)[:_FREQUENT]],
            },
            "images": {
                "count": len(self._widths),
                "width": distribution(self._widths),
                "height": distribution(self._heights),
                "formats": dict(_by_count(self._formats)),
                "modes": dict(_by_count(self._modes)),
            },
            "moved_images": self.moved_images,
            "near_copies": self.near_copies,
            "sets": [self._of_set(name) for name in sorted({*self.sets, *(name for name, _ in self._of_sets)})],
            "dropped": self.groups(),
        }

    def _of_set(self, name: str) -> dict[str, Any]:
        told = self.sets.get(name, {})
        figures = {"set": name, "given": told.get("given"), "not_drawn": told.get("not_drawn", 0)}
        return figures | {split: self._of_sets[name, split] for split in self.splits}

    def groups(self) -> list[dict[str, Any]]:
        """Return what was left out or cut by reason, with examples; what download left out comes first."""
        groups: dict[tuple[str, str], dict[str, Any]] = {}

        def count(what: str, kind: str, number: int, examples: list[dict[str, str]]) -> None:
            group = groups.setdefault((what, kind), {"what": what, "kind": kind, "count": 0, "examples": []})
            group["count"] += number
            group["examples"] += examples[: _EXAMPLES - len(group["examples"])]

        for _, told in sorted(self.sets.items()):
            for kind, held in told["dropped"].items():
                examples = [{"id": one["id"], "image": "", "reason": one["reason"]} for one in held["examples"]]
                count("conversation", kind, held["count"], examples)
        for item in self.dropped:
            count(item.what, item.kind, 1, [{"id": item.id, "image": item.image, "reason": item.reason}])
        return [group for _, group in sorted(groups.items())]


def distribution(values: Sequence[int]) -> dict[str, Any]:
    """Describe whole numbers: count, sum, extremes, mean, percentiles and a histogram; {"count": 0} for none."""
    if not values:
        return {"count": 0}
    array = np.asarray(values, np.int64)
    low, high = int(array.min()), int(array.max())
    counts, edges = np.histogram(array, bins=min(_BINS, high - low + 1), range=(low, high + 1))
    marks = {name: float(np.percentile(array, share)) for name, share in (("p05", 5), ("median", 50), ("p95", 95))}
    return {
        "count": len(values),
        "sum": int(array.sum()),
        "min": low,
        "max": high,
        "mean": round(float(array.mean()), 4),
        **marks,
        "histogram": {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()},
    }


def _by_count(counter: collections.Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
