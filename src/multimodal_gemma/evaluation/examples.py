"""Pictures with question, answer and truth: numbers one can look at."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from multimodal_gemma.evaluation.predictions import Row
from multimodal_gemma.reporting.page import GalleryItem

if TYPE_CHECKING:
    from multimodal_gemma.data.shards import ImageShards

_MOST_TRUTHS = 3  # of the annotators' answers, the most frequent ones


def gallery(rows: Sequence[Row], shards: ImageShards, most: int) -> list[GalleryItem]:
    """Return examples drawn evenly over the benchmarks and over their rows, each of another image.

    Args:
        rows: to choose from.
        shards: where the images are.
        most: how many examples.
    """
    from PIL import Image, ImageOps

    items = []
    for row in _spread(rows, most):
        with Image.open(io.BytesIO(shards.read(row["image"]))) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        mark = "good" if row["score"] >= 0.5 else "bad"
        sure = "" if row["p_yes"] is None or "label" not in row else f", P(yes) {row['p_yes']:.2f}"
        lines = [
            (f"answer: {row['prediction'] or '(empty)'}{sure}", mark),
            (f"truth: {_truth(row)}", ""),
            (row["benchmark"], ""),
        ]
        items.append(GalleryItem(picture, row["question"], lines))
    return items


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """Take rows of every benchmark, evenly spaced, no image twice while there are others."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["benchmark"], []).append(row)
    chosen: list[Row] = []
    for number, group in enumerate(groups.values()):
        quota = most // len(groups) + (number < most % len(groups))
        seen: set[str] = {row["image_id"] for row in chosen}
        one_each = []
        for row in group:
            if row["image_id"] not in seen:
                seen.add(row["image_id"])
                one_each.append(row)
        pool = one_each or group
        step = max(1, len(pool) // max(1, quota))
        chosen += pool[::step][:quota]
    return chosen


def _truth(row: Row) -> str:
    if "label" in row:
        return str(row["label"])
    counts = Counter[str](row["answers"]).most_common(_MOST_TRUTHS)
    return ", ".join(f"{answer} ({count} of {len(row['answers'])})" for answer, count in counts)
