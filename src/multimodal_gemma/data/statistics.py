"""What a dataset is like, in figures that are gathered while it is made.

Everything is counted in one pass and kept small, so that the figures of 157,712 conversations cost megabytes. The
result is plain JSON for machines; `statistics_report` draws it for people.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gemma import files
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.images import ImageOutcome
from multimodal_gemma.data.tokenize import Tokenized

SCHEMA_VERSION = 1
_EXAMPLES = 5  # of each reason for which something was dropped
_FREQUENT = 30  # answers listed
_SHORT_ANSWER = 60  # characters; a longer answer hardly ever repeats, and a table of them would only cost memory
_BINS = 40


@dataclasses.dataclass(frozen=True)
class Dropped:
    """One thing that was left out or cut; a line of dropped.jsonl.

    Attributes:
        what: "image", "conversation", or "turns" (the conversation stays, shortened).
        id: the conversation's id, or the image's file name.
        image: file name of the image that is concerned; "" for none.
        kind: the reason as a word to count by.
        reason: the reason in words.
    """

    what: str
    id: str
    image: str
    kind: str
    reason: str


@dataclasses.dataclass
class SplitFigures:
    """What is gathered about one split; each list has one number a conversation."""

    text_tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    supervised_tokens: list[int] = dataclasses.field(default_factory=list)
    turns: list[int] = dataclasses.field(default_factory=list)
    images: set[int] = dataclasses.field(default_factory=set)
    text_only: int = 0


class Statistics:
    """Gathers figures; `to_json` returns them.

    Args:
        image_tokens: positions that an image takes; may be set later, before the first conversation is added.
    """

    def __init__(self, image_tokens: int = 0) -> None:
        self.image_tokens = image_tokens
        self.splits = {"train": SplitFigures(), "val": SplitFigures()}
        self.dropped: list[Dropped] = []
        self._answers: collections.Counter[str] = collections.Counter()
        self.answer_words: list[int] = []
        self._formats: collections.Counter[str] = collections.Counter()
        self._modes: collections.Counter[str] = collections.Counter()
        self._sizes: list[tuple[int, int]] = []

    def add_image(self, image: ImageOutcome) -> None:
        """Count a usable image."""
        self._formats[image.format] += 1
        self._modes[image.mode] += 1
        self._sizes.append((image.width, image.height))

    def add_conversation(self, split: str, conversation: Conversation, tokenized: Tokenized, image_index: int) -> None:
        """Count a conversation as it stands in a split."""
        figures, with_image = self.splits[split], image_index >= 0
        figures.text_tokens.append(len(tokenized.input_ids) - with_image)
        figures.positions.append(len(tokenized.input_ids) + (self.image_tokens - 1) * with_image)
        figures.supervised_tokens.append(sum(tokenized.supervised))
        figures.turns.append(tokenized.turns)
        if with_image:
            figures.images.add(image_index)
        else:
            figures.text_only += 1
        for turn in conversation.turns[: tokenized.turns]:
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
        widths, heights = [width for width, _ in self._sizes], [height for _, height in self._sizes]
        return {
            "schema_version": SCHEMA_VERSION,
            "splits": {name: _split(figures) for name, figures in self.splits.items()},
            "answers": {
                "count": len(self.answer_words),
                "words": distribution(self.answer_words),
                "most_frequent": [list(item) for item in _by_count(self._answers)[:_FREQUENT]],
            },
            "images": {
                "count": len(self._sizes),
                "width": distribution(widths),
                "height": distribution(heights),
                "formats": dict(_by_count(self._formats)),
                "modes": dict(_by_count(self._modes)),
            },
            "dropped": self._dropped(),
        }

    def _dropped(self) -> list[dict[str, Any]]:
        groups: dict[tuple[str, str], list[Dropped]] = collections.defaultdict(list)
        for item in self.dropped:
            groups[item.what, item.kind].append(item)
        return [
            {
                "what": what,
                "kind": kind,
                "count": len(items),
                "examples": [{"id": item.id, "image": item.image, "reason": item.reason} for item in items[:_EXAMPLES]],
            }
            for (what, kind), items in sorted(groups.items())
        ]


def distribution(values: list[int]) -> dict[str, Any]:
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


def _split(figures: SplitFigures) -> dict[str, Any]:
    return {
        "conversations": len(figures.turns),
        "images": len(figures.images),
        "text_only": figures.text_only,
        "text_tokens": distribution(figures.text_tokens),
        "positions": distribution(figures.positions),
        "supervised_tokens": distribution(figures.supervised_tokens),
        "turns": distribution(figures.turns),
    }


def _by_count(counter: collections.Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
