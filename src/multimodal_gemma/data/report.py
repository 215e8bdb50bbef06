"""A processed dataset as a person reads it: a page to look at before training on it, and any row in a terminal.

What a dataset teaches is seen nowhere better than in a few of its rows, every token with whether it counts: a picture
on its side, a mask that is off by one turn or a template of another family show at once. The page has twelve of them
beside the figures and what was left out; `mmgemma show` prints any.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from multimodal_gemma.errors import InputError
from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import Page, data_uri

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.data.statistics import Statistics

THUMBNAILS = 60  # about 3 KB each
CONVERSATIONS = 12
_ANSWERS = 15
_BARS = 30
_TEXT = 160  # characters of a text from the data that the page shows
_LEARNT, _OPEN, _CLOSE = "bold green", "⟦", "⟧"  # in a terminal; the signs where there is no colour
_ROWS = 20  # of text that the picture takes there, two of its rows each

_STYLE = """<style>
.talk{display:grid;grid-template-columns:12rem 1fr;gap:.2rem 1rem;padding:.9rem 0;border-bottom:1px solid var(--line)}
.talk img{width:100%;border-radius:.4rem;display:block}.talk .figures{display:block;color:var(--soft);font-size:.85rem}
.said{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0}.control{color:var(--soft);font-size:.8em}
.learnt{background:#d3f9d8;color:#1b5e2a;border-radius:.2rem}
@media (prefers-color-scheme:dark){.learnt{background:#153d20;color:#b2f2bb}}
@media (min-width:40rem){.said{max-height:22rem;overflow-y:auto}}
@media (max-width:40rem){.talk{grid-template-columns:1fr}.talk img{max-width:14rem}}
</style>"""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens that follow each other and are of one kind."""

    text: str  # as the tokenizer decodes them; of the image, how many positions it takes
    learnt: bool  # the model learns to predict them
    control: bool  # they are no text: beginnings and ends of turns, the image


@dataclasses.dataclass(frozen=True)
class Look:
    """One conversation to look at."""

    split: str  # "train" or "val"
    row: int  # in it
    id: str  # as published
    file_name: str  # of its picture, "" for none
    picture: np.ndarray | None  # uint8 (side, side, 3) as the encoder takes it; None for none
    pieces: list[Piece]  # all of its tokens in their order
    positions: int  # that it takes in the language model, the image expanded
    learnt: int  # tokens that count

    @property
    def figures(self) -> str:
        """What it costs and teaches, in words."""
        return f"{self.positions:,} positions, {self.learnt:,} learnt"


def look(dataset: ProcessedDataset, tokenizer: Tokenizer, split: str, row: int) -> Look:
    """Look at one conversation of "train" or "val", by the tokenizer of the dataset.

    Raises:
        InputError: there is no such split or row.
    """
    rows = dataset.split(split)
    if not 0 <= row < len(rows):
        raise InputError(f"show: {dataset.folder} has {len(rows):,} rows in {split}, so no row {row}. They begin at 0.")
    sample = rows[row]
    control = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    kinds = [
        (bool(learnt), token in control, token == dataset.image_token_id)
        for token, learnt in zip(sample.input_ids.tolist(), sample.supervised.tolist(), strict=True)
    ]
    pieces, ids = [], iter(sample.input_ids.tolist())
    for (learnt, special, image), group in itertools.groupby(kinds):
        text = tokenizer.decode([next(ids) for _ in group], skip_special_tokens=False)
        pieces.append(Piece(f"[image: {dataset.image_tokens} positions]" if image else text, learnt, special))
    index = sample.image_index
    return Look(
        split,
        row,
        sample.id,
        dataset.file_names[index] if index >= 0 else "",
        dataset.image(index) if index >= 0 else None,
        pieces,
        int(rows.lengths[row]),
        int(sample.supervised.sum()),
    )


def spread(dataset: ProcessedDataset, count: int) -> list[Look]:
    """Look at some conversations, drawn evenly over the dataset, a sixth of them held out."""
    tokenizer = tokenizer_of(dataset)
    held = {name: len(dataset.split(name)) for name in ("train", "val")}
    share = {"val": min(held["val"], count // 6)}
    share["train"] = min(held["train"], count - share["val"])
    return [
        look(dataset, tokenizer, name, place * held[name] // share[name])
        for name in ("train", "val")
        for place in range(share[name])
    ]


def show(dataset: ProcessedDataset, split: str, row: int) -> None:
    """Print one conversation: picture, text, what is learnt of it.

    Raises:
        InputError: there is no such row.
    """
    from rich.console import Console
    from rich.text import Text

    seen = look(dataset, tokenizer_of(dataset), split, row)
    out = Console(highlight=False, soft_wrap=True)
    coloured = out.is_terminal and out.color_system is not None
    out.print(Text(f"{split} {row}   id {seen.id}   {seen.file_name or 'no picture'}   {seen.figures}", "bold"))
    if coloured and seen.picture is not None:
        out.print(_drawn(seen.picture))
    text = Text()
    for learnt, pieces in itertools.groupby(seen.pieces, key=lambda piece: piece.learnt):
        signs = (_OPEN, _CLOSE) if learnt and not coloured else ("", "")
        text.append(signs[0])
        for piece in pieces:
            text.append(piece.text, _LEARNT if learnt else "dim" if piece.control else "")
        text.append(signs[1])
    out.print(text)
    out.print(Text("learnt: green" if coloured else f"learnt: between {_OPEN} and {_CLOSE}", "dim"))


def tokenizer_of(dataset: ProcessedDataset) -> Tokenizer:
    """Return the bare tokenizer: the processor around it takes seconds to import."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(dataset.folder / "processor" / "tokenizer.json"))


def _drawn(picture: np.ndarray) -> Any:
    """Return a picture as text: each place is the upper of two pixels on the lower one."""
    from rich.text import Text

    small = np.asarray(Image.fromarray(picture).resize((2 * _ROWS, 2 * _ROWS)))
    text = Text()
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", f"rgb({above[0]},{above[1]},{above[2]}) on rgb({below[0]},{below[1]},{below[2]})")
        text.append("\n")
    return text


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
    for seen in looks:
        said = "".join(_span(piece) for piece in seen.pieces)
        about = f"{seen.split} {seen.row:,}, id {seen.id}, {seen.file_name or 'no picture'}"
        uri = "" if seen.picture is None else data_uri(Image.fromarray(seen.picture))
        picture = f"<img alt='' src='{uri}'>" if uri else "<span></span>"
        report.raw(
            f"<div class='talk'>{picture}<div><span class='figures'>{html.escape(about)}<br>{seen.figures}</span>"
            f"<p class='said'>{said}</p></div></div>"
        )


def _span(piece: Piece) -> str:
    marks = [name for name in ("learnt", "control") if getattr(piece, name)]
    text = html.escape(piece.text)
    return f"<span class='{' '.join(marks)}'>{text}</span>" if marks else text


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
        rows = []
        for group in value["dropped"]:
            first = group["examples"][0]
            example = _short(f"{first['id']}: {first['reason']}")
            rows.append((group["what"], group["kind"], group["count"], example))
        report.table(("what", "reason", "count", "for example"), rows)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _histogram(values: Sequence[int], label: str) -> str:
    ordered = sorted(values)
    marks = {"median": float(ordered[len(ordered) // 2]), "95%": float(ordered[int(len(ordered) * 0.95)])}
    span = ordered[-1] - ordered[0] + 1
    width = math.ceil(span / _BARS)  # bars of a whole width: none is empty only because no whole number falls into it
    return charts.histogram(values, label, bins=math.ceil(span / width), marks=marks)
