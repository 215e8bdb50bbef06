"""A report page, built from a few kinds of block.

Self-contained and without scripts, so it shows in KFP's sandboxed frame, in MLflow, in a mail and on a phone. All
that a caller passes is escaped, except SVG and HTML that the project drew itself.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from multimodal_gemma.reporting import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

_CSS = """
:root{--ink:#212529;--soft:#5c636a;--line:#dee2e6;--accent:#3b5bdb;--good:#2b8a3e;--bad:#c92a2a;--paper:#fff;--tint:#f8f9fa}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink)}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0 .4rem}
h2{font-size:1.2rem;margin:2.4rem 0 .2rem;padding-top:.6rem;border-top:1px solid var(--line)}
p{margin:.3rem 0 .8rem}.lead,.sentence,figcaption{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1rem 0}
.card{background:var(--tint);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
.card span{color:var(--soft);font-size:.85rem;display:block}
.card.good b{color:var(--good)}.card.bad b{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;margin:.6rem 0;font-size:.93rem}
th,td{padding:.32rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600;color:var(--soft);white-space:nowrap}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
td.number{white-space:nowrap}
caption{caption-side:bottom;text-align:left;color:var(--soft);font-size:.85rem;padding-top:.3rem}
.figures{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}.figures figure{flex:1 1 14rem}
figure{margin:.6rem 0}figcaption{font-size:.85rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.9rem;margin:.8rem 0}
.item{border:1px solid var(--line);border-radius:.5rem;overflow:hidden;background:var(--tint);font-size:.88rem}
.item img{display:block;width:100%;height:auto}.item div{padding:.5rem .7rem}
.item p{margin:.15rem 0;overflow-wrap:anywhere}
.thumbs{display:flex;flex-wrap:wrap;gap:.25rem}.thumbs img{height:72px;width:auto;border-radius:.2rem}
.good{color:var(--good)}.bad{color:var(--bad)}
pre{background:#212529;color:#f1f3f5;padding:.8rem;border-radius:.5rem;overflow-x:auto;font-size:.82rem;line-height:1.4}
@media (prefers-color-scheme:dark){
:root{--ink:#e9ecef;--soft:#adb5bd;--line:#373b3f;--paper:#16181a;--tint:#1f2225;--accent:#91a7ff}
:root{--good:#69db7c;--bad:#ff8787}
figure{background:#fff;border-radius:.4rem;padding:.3rem}figcaption{color:#5c636a}}
"""


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """A picture with what was asked and answered about it.

    Attributes:
        image: shown at most 320 pixels wide.
        caption: a line in bold.
        lines: (text, class) pairs; class is "good", "bad" or "".
    """

    image: Image
    caption: str
    lines: Sequence[tuple[str, str]] = ()


class Page:
    """Collects blocks in reading order; `html()` returns the page."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._blocks = [f"<h1>{_text(title)}</h1><p class='lead'>{_text(lead)}</p>"]

    def section(self, heading: str, sentence: str = "") -> Self:
        """Start a section; the sentence says what to see in it."""
        said = f"<p class='sentence'>{_text(sentence)}</p>" if sentence else ""
        return self.raw(f"<h2>{_text(heading)}</h2>{said}")

    def paragraph(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self.raw(f"<p>{_text(text)}</p>")

    def cards(self, cards: Sequence[tuple[str, str, str]], *, classes: Sequence[str] = ()) -> Self:
        """Add cards of (label, value, note); a class "good" or "bad" a card colours its value."""
        marks = [*classes, *[""] * (len(cards) - len(classes))]
        inner = "".join(
            f"<div class='card {mark}'><span>{_text(label)}</span><b>{_text(value)}</b><span>{_text(note)}</span></div>"
            for (label, value, note), mark in zip(cards, marks, strict=True)
        )
        return self.raw(f"<div class='cards'>{inner}</div>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]], caption: str = "") -> Self:
        """Add a table; a column whose every cell is a number is right-aligned."""
        numeric = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
        mark = [" class='number'" if flag else "" for flag in numeric]
        head = "".join(f"<th{mark[index]}>{_text(name)}</th>" for index, name in enumerate(columns))
        body = "".join(
            "<tr>" + "".join(f"<td{mark[index]}>{_text(_cell(cell))}</td>" for index, cell in enumerate(row)) + "</tr>"
            for row in rows
        )
        said = f"<caption>{_text(caption)}</caption>" if caption else ""
        return self.raw(
            f"<div class='scroll'><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def figure(self, svg: str, caption: str = "") -> Self:
        """Add a chart that `charts` drew."""
        return self.figures([(svg, caption)])

    def figures(self, figures: Sequence[tuple[str, str]]) -> Self:
        """Add (svg, caption) charts side by side where the page is wide enough."""
        inner = "".join(
            f"<figure>{svg}{f'<figcaption>{_text(caption)}</figcaption>' if caption else ''}</figure>"
            for svg, caption in figures
        )
        return self.raw(f"<div class='figures'>{inner}</div>")

    def gallery(self, items: Sequence[GalleryItem]) -> Self:
        """Add pictures with their captions and lines."""
        inner = "".join(
            f"<div class='item'><img alt='{_text(item.caption)}' src='{pictures.data_uri(item.image, max_side=320)}'>"
            f"<div><p><b>{_text(item.caption)}</b></p>"
            + "".join(f"<p class='{mark}'>{_text(line)}</p>" for line, mark in item.lines)
            + "</div></div>"
            for item in items
        )
        return self.raw(f"<div class='gallery'>{inner}</div>")

    def thumbnails(self, images: Sequence[Image]) -> Self:
        """Add a contact sheet: many small pictures without words."""
        inner = "".join(f"<img alt='' src='{pictures.data_uri(image, max_side=96, quality=70)}'>" for image in images)
        return self.raw(f"<div class='thumbs'>{inner}</div>")

    def pre(self, text: str) -> Self:
        """Add text as it stands, e.g. the end of a log."""
        return self.raw(f"<pre>{_text(text)}</pre>")

    def raw(self, markup: str) -> Self:
        """Add markup that the project itself made."""
        self._blocks.append(markup)
        return self

    def html(self) -> str:
        """Return the whole page."""
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width,initial-scale=1'>"
            f"<title>{_text(self._title)}</title><style>{_CSS}</style></head><body><main>"
            + "\n".join(self._blocks)
            + "</main></body></html>\n"
        )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _is_number(cell: str | int | float) -> bool:
    """Tell whether a cell reads as a figure: 12, 0.93, "93.1%", "0.91-0.95", "1,024", "12 s" or an empty "-"."""
    if isinstance(cell, int | float):
        return True
    return cell in {"-", ""} or ((cell[:1].isdigit() or cell[:2] in {"+0", "-0", "+1", "-1"}) and len(cell) <= 24)


def _cell(cell: str | int | float) -> str:
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.3f}"
