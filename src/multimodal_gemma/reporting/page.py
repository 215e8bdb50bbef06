"""A report page, built from a few kinds of block.

Self-contained and without scripts, so it shows in KFP's sandboxed frame, in MLflow, in a mail and on a phone. The
template (page.html.j2) escapes all that a caller passes, except SVG and HTML that the project drew itself.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """A picture with what was asked and answered about it.

    Attributes:
        image: shown at most 320 pixels wide.
        caption: a line in bold.
        lines: (text, class) pairs; class is "good", "bad" or "", and colours what the text says in words.
    """

    image: Image
    caption: str
    lines: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Link:
    """A cell of a table that leads somewhere; without an address it is its text alone."""

    text: str
    address: str = ""


Cell = str | int | float | Link


class Page:
    """Collects blocks in reading order; `html()` returns the page."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self._lead = title, lead
        self._blocks: list[dict[str, Any]] = []
        self._charts = 0

    def _add(self, kind: str, **content: Any) -> Self:
        self._blocks.append({"kind": kind, **content})
        return self

    def section(self, heading: str, sentence: str = "") -> Self:
        """Start a section; the sentence says what to see in it."""
        return self._add("section", heading=heading, sentence=sentence)

    def paragraph(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self._add("paragraph", text=text)

    def cards(self, cards: Sequence[tuple[str, str, str]], *, classes: Sequence[str] = ()) -> Self:
        """Add cards of (label, value, note); a class "good" or "bad" a card colours its value."""
        marks = [*classes, *[""] * (len(cards) - len(classes))]
        return self._add("cards", cards=list(zip(cards, marks, strict=True)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> Self:
        """Add a table; a column whose every cell is a number is right-aligned."""
        numeric = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
        cells = [[_cell(cell) for cell in row] for row in rows]
        return self._add("table", columns=columns, rows=cells, numeric=numeric, caption=caption)

    def figure(self, svg: str, caption: str = "") -> Self:
        """Add a chart that `charts` drew."""
        return self.figures([(svg, caption)])

    def figures(self, figures: Sequence[tuple[str, str]]) -> Self:
        """Add (svg, caption) charts side by side where the page is wide enough."""
        from markupsafe import Markup

        drawn = []
        for svg, caption in figures:
            self._charts += 1
            # Every chart calls its parts alike: on one page an id stands once.
            own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{self._charts}-", svg)
            drawn.append((Markup(own), caption))
        return self._add("figures", figures=drawn)

    def gallery(self, items: Sequence[GalleryItem]) -> Self:
        """Add pictures with their captions and lines."""
        shown = [
            {
                "source": data_uri(item.image, max_side=320),
                "caption": item.caption,
                "lines": item.lines,
            }
            for item in items
        ]
        return self._add("gallery", items_=shown)

    def thumbnails(self, images: Sequence[Image]) -> Self:
        """Add a contact sheet: many small pictures without words."""
        return self._add("thumbnails", sources=[data_uri(image, max_side=96, quality=70) for image in images])

    def pre(self, text: str, *, summary: str = "") -> Self:
        """Add text as it stands, e.g. the end of a log; with a summary it is folded behind that."""
        return self._add("pre", text=text, summary=summary)

    def raw(self, markup: str) -> Self:
        """Add markup that the project itself made."""
        from markupsafe import Markup

        return self._add("raw", markup=Markup(markup))

    def html(self, kind: str = "page", **more: Any) -> str:
        """Return the whole page.

        Args:
            kind: of template and style: another one extends "page".
            more: what the template of this kind shows.
        """
        from markupsafe import Markup

        css = Markup("".join(_text(f"{name}.css") for name in dict.fromkeys(("page", kind))))
        shown = {"title": self.title, "lead": self._lead, "css": css, "blocks": self._blocks}
        return _template(kind).render(**shown, **more) + "\n"


def data_uri(image: Image, *, max_side: int = 224, quality: int = 80) -> str:
    """Return `image` as a JPEG data URI.

    Args:
        image: any mode; converted to RGB.
        max_side: longer side in pixels; a larger image is reduced, a smaller one stays.
        quality: of the JPEG, 1 to 95.
    """
    small = image.convert("RGB")
    small.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@functools.cache
def _template(kind: str) -> Template:
    from jinja2 import Environment, FunctionLoader

    made = Environment(loader=FunctionLoader(_text), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return made.get_template(f"{kind}.html.j2")


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _is_number(cell: Cell) -> bool:
    """Tell whether a cell reads as a figure: 12, 0.93, "93.1%", "0.91-0.95", "1,024", "12 s" or an empty "-"."""
    if isinstance(cell, Link):
        return False
    if isinstance(cell, int | float):
        return True
    return cell in {"-", ""} or (cell.lstrip("+-")[:1].isdigit() and len(cell) <= 24)


def _cell(cell: Cell) -> Link:
    if isinstance(cell, Link):
        return cell
    if isinstance(cell, bool | str):
        return Link(str(cell))
    return Link(f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}")
