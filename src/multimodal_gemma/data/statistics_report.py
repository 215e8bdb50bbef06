"""The statistics of a processed dataset as a page to look at before training on it."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import Page

if TYPE_CHECKING:
    import numpy as np

    from multimodal_gemma.data.statistics import Statistics

THUMBNAILS = 60  # about 3 KB each
_ANSWERS = 15
_BARS = 30
_TEXT = 160  # characters of a text from the data that the page shows


def page(statistics: Statistics, facts: dict[str, Any], thumbnails: list[np.ndarray]) -> str:
    """Return the page as HTML.

    Args:
        statistics: what was gathered.
        facts: of the manifest: image_tokens, image_size, contamination.
        thumbnails: uint8 (side, side, 3), images as the encoder will see them.
    """
    value = statistics.to_json()
    report = Page("Processed dataset", _lead(value, facts))
    _overview(report, value, facts)
    _lengths(report, statistics)
    _answers(report, value, statistics)
    _images(report, value, facts, thumbnails)
    _dropped(report, value)
    return report.html()


def _lead(value: dict[str, Any], facts: dict[str, Any]) -> str:
    train, val = value["splits"]["train"], value["splits"]["val"]
    said = {
        "clean": "No image of it is asked about by the benchmarks.",
        "allowed": "Images that the benchmarks ask about were kept on request: scores on them measure memory.",
        "unknown": "It was not compared with any benchmark.",
    }
    return (
        f"{train['conversations']:,} conversations on {train['images']:,} images to train on, "
        f"{val['conversations']:,} on {val['images']:,} other images to validate. "
        f"{said[facts['contamination']['status']]}"
    )


def _overview(report: Page, value: dict[str, Any], facts: dict[str, Any]) -> None:
    train = value["splits"]["train"]
    supervised, positions = train["supervised_tokens"].get("sum", 0), train["positions"].get("sum", 0)
    lost = sum(group["count"] for group in value["dropped"] if group["what"] == "conversation")
    report.cards(
        [
            ("conversations", f"{train['conversations']:,}", "in the training split"),
            (
                "images",
                f"{value['images']['count']:,}",
                f"{facts['image_size']} px: {facts['image_tokens']} tokens each",
            ),
            ("supervised tokens", f"{supervised:,}", f"{supervised / max(positions, 1):.1%} of all positions"),
            ("dropped", f"{lost:,}", "conversations, see below"),
        ]
    )
    columns = ("split", "conversations", "images", "text only", "median text tokens", "longest", "supervised tokens")
    rows = [
        (
            name,
            split["conversations"],
            split["images"],
            split["text_only"],
            f"{split['text_tokens'].get('median', 0):.0f}",
            split["text_tokens"].get("max", 0),
            split["supervised_tokens"].get("sum", 0),
        )
        for name, split in value["splits"].items()
    ]
    moved = value["moved_images"]
    order = f" In {moved:,} conversations the image was put before the question." if moved else ""
    report.section("Splits", f"No image is in both splits: which one it is in depends on its name alone.{order}")
    report.table(columns, rows)


def _lengths(report: Page, statistics: Statistics) -> None:
    train = statistics.splits["train"]
    report.section(
        "Lengths",
        "How much text a training conversation has. A spike at the right end means that many were cut.",
    )
    report.figure(_histogram(train.text_tokens, "text tokens a conversation"))
    report.section(
        "Supervised tokens", "How much of each is learnt. Two or three are a single-word answer and its end."
    )
    report.figure(_histogram(train.supervised_tokens, "supervised tokens a conversation"))
    report.section("Turns", "Questions and answers a conversation, both counted: two is one question with its answer.")
    counts = sorted(collections.Counter(train.turns).items())
    report.figure(charts.bars([str(turns) for turns, _ in counts], [count for _, count in counts], "conversations"))


def _answers(report: Page, value: dict[str, Any], statistics: Statistics) -> None:
    answers = value["answers"]
    report.section("Answers", "Words an answer has. A model answers as long as it was taught to.")
    report.figure(_histogram(statistics.answer_words, "words an answer"))
    frequent = [(text, count) for text, count in answers["most_frequent"][:_ANSWERS] if count > 1]
    if not frequent:
        return
    report.section(
        "Most frequent answers",
        "Short answers that repeat. Where one of them is a large share, a model can score by always giving it: "
        "much more yes than no teaches a model to say yes.",
    )
    rows = [(_short(text), count, f"{count / answers['count']:.1%}") for text, count in frequent]
    report.table(("answer", "times", "of all answers"), rows)


def _images(report: Page, value: dict[str, Any], facts: dict[str, Any], thumbnails: list[np.ndarray]) -> None:
    from PIL import Image

    images = value["images"]
    if not images["count"]:
        return
    report.section("Image files", "Before resizing. Anything but JPEG in RGB is worth a look at the pictures below.")
    sides = [(name, images[name]) for name in ("width", "height")]
    size = [(name, side["min"], f"{side['median']:.0f}", side["max"]) for name, side in sides]
    report.table(("pixels", "smallest", "median", "largest"), size)
    for name in ("format", "mode"):
        report.table((name, "images"), list(images[f"{name}s"].items()))
    report.section(
        "As the encoder sees them",
        f"{len(thumbnails)} of {images['count']:,} images, resized and cropped to {facts['image_size']} pixels. "
        "Look for pictures on their side, wrong colours, and subjects that the crop cuts off.",
    )
    report.thumbnails([Image.fromarray(pixels) for pixels in thumbnails])


def _dropped(report: Page, value: dict[str, Any]) -> None:
    report.section(
        "Left out or cut",
        "Everything that is not in the dataset although it was given, by reason; dropped.jsonl has every line."
        if value["dropped"]
        else "Nothing: every conversation and every image that was given is in the dataset, whole.",
    )
    if value["dropped"]:
        rows = [
            (group["what"], group["kind"], group["count"], _example(group["examples"][0])) for group in value["dropped"]
        ]
        report.table(("what", "reason", "count", "for example"), rows)


def _example(item: dict[str, str]) -> str:
    return _short(f"{item['id']}: {item['reason']}")


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _histogram(values: Sequence[int], label: str) -> str:
    ordered = sorted(values)
    marks = {"median": float(ordered[len(ordered) // 2]), "95%": float(ordered[int(len(ordered) * 0.95)])}
    span = ordered[-1] - ordered[0] + 1
    width = math.ceil(span / _BARS)  # bars of a whole width: none is empty only because no whole number falls into it
    return charts.histogram(values, label, bins=math.ceil(span / width), marks=marks)
