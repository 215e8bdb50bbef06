"""A processed dataset as a page to look at before training on it: conversations, figures, what was left out."""

from __future__ import annotations

import collections
import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import Page, data_uri

if TYPE_CHECKING:
    import numpy as np

    from multimodal_gemma.data.look import Look, Piece
    from multimodal_gemma.data.statistics import Statistics

THUMBNAILS = 60  # about 3 KB each
CONVERSATIONS = 12
_ANSWERS = 15
_BARS = 30
_TEXT = 160  # characters of a text from the data that the page shows


_STYLE = """<style>
.talk{display:grid;grid-template-columns:12rem 1fr;gap:.2rem 1rem;padding:.9rem 0;border-bottom:1px solid var(--line)}
.talk img{width:100%;border-radius:.4rem;display:block}.talk .figures{display:block;color:var(--soft);font-size:.85rem}
.said{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0}.control{color:var(--soft);font-size:.8em}
.learnt{background:#d3f9d8;color:#1b5e2a;border-radius:.2rem}
@media (prefers-color-scheme:dark){.learnt{background:#153d20;color:#b2f2bb}}
@media (min-width:40rem){.said{max-height:22rem;overflow-y:auto}}
@media (max-width:40rem){.talk{grid-template-columns:1fr}.talk img{max-width:14rem}}
</style>"""


def page(
    statistics: Statistics,
    facts: dict[str, Any],
    thumbnails: Sequence[np.ndarray],
    looks: Sequence[Look] = (),
    sources: dict[str, dict[str, str]] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        statistics: what was gathered.
        facts: of the manifest: image_tokens, image_size, contamination.
        thumbnails: uint8 (side, side, 3), images as the encoder will see them.
        looks: conversations to show.
        sources: what the raw dataset says of where it came from: uri, and commit and licence where they are known.
    """
    value = statistics.to_json()
    report = Page("Processed dataset", _lead(value, facts))
    _overview(report, value, facts)
    _sources(report, sources or {})
    _conversations(report, looks)
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
    copies = value["near_copies"]
    together = f" {copies:,} pictures have near copies, which are on the same side." if copies else ""
    rule = "No picture is in both splits, whatever its names: which one it is in depends on its bytes alone."
    report.section("Splits", f"{rule}{together}{order}")
    report.table(columns, rows)
    if len(value["sets"]) > 1:
        report.section(
            "Sets", "What each of them gave, and what of it is learnt. Rows that were not drawn are no loss."
        )
        named = ("set", "given", "not drawn", "train", "val")
        report.table(named, [[told[name.replace(" ", "_")] or 0 for name in named] for told in value["sets"]])


def _sources(report: Page, sources: dict[str, dict[str, str]]) -> None:
    if not sources:
        return
    report.section(
        "Sources", "Where it came from. A licence that is not stated here is not known: ask the publisher before use."
    )
    named = sorted(sources.items())
    rows = [
        (key, told.get("uri") or "this machine", told.get("commit") or "-", told.get("licence") or "not stated")
        for key, told in named
    ]
    report.table(("what", "where", "revision", "licence"), rows)


def _conversations(report: Page, looks: Sequence[Look]) -> None:
    if not looks:
        return
    report.section(
        "Conversations",
        "As the model reads them, control tokens included. Green is what it learns: every answer with its end of turn, "
        "and nothing else. mmgemma show DATASET ROW prints any other.",
    )
    report.raw(_STYLE)
    for look in looks:
        said = "".join(_span(piece) for piece in look.pieces)
        about = f"{look.split} {look.row:,}, id {look.id}, {look.file_name or 'no picture'}"
        picture = "<span></span>" if look.picture is None else f"<img alt='' src='{_picture(look.picture)}'>"
        report.raw(
            f"<div class='talk'>{picture}<div><span class='figures'>{html.escape(about)}<br>{look.figures}</span>"
            f"<p class='said'>{said}</p></div></div>"
        )


def _span(piece: Piece) -> str:
    marks = [name for name in ("learnt", "control") if getattr(piece, name)]
    text = html.escape(piece.text)
    return f"<span class='{' '.join(marks)}'>{text}</span>" if marks else text


def _picture(pixels: np.ndarray) -> str:
    from PIL import Image

    return data_uri(Image.fromarray(pixels), max_side=224)


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


def _images(report: Page, value: dict[str, Any], facts: dict[str, Any], thumbnails: Sequence[np.ndarray]) -> None:
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
