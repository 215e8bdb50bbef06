"""Charts as inline SVG: few colours, one accent, text that stays text.

Matplotlib draws; this module only gives every chart of the project the same plain look, makes it fit a phone, and
lets it take the colours of its page, light or dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.8  # inches: on a phone the text of a wider chart would be too small to read
_INK, _SOFT, _LINE = "#212529", "#5c636a", "#dee2e6"  # text, labels, grid
ACCENT = "#3b5bdb"
PALETTE = (ACCENT, "#e8590c", "#237032", "#ae3ec9", _SOFT, "#d6336c")
_DEEPEST = 0.55  # opacity of a cell: text on it is legible in the light and in the dark
# The page's variables for these colours; outside a page the colours themselves hold.
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", ACCENT: "accent", PALETTE[2]: "good"}
_STYLE = {
    "svg.fonttype": "none",  # text remains selectable, and the file small
    "svg.hashsalt": "multimodal-gemma",  # the same chart gives the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.grid": True,
    "grid.color": _LINE,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str, *, log_y: bool = False
) -> str:
    """Draw one line a series.

    Args:
        series: name to (xs, ys), drawn in this order; a series of few points gets markers.
        x_label: what runs along the bottom, with its unit.
        y_label: what runs up the side, with its unit.
        log_y: whether the side is logarithmic.
    """

    def draw(axes: Axes) -> None:
        for index, (name, (xs, ys)) in enumerate(series.items()):
            marker = "o" if len(xs) <= 30 else None
            colour = PALETTE[index % len(PALETTE)]
            axes.plot(list(xs), list(ys), label=name, color=colour, marker=marker, markersize=4, linewidth=1.6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log_y:
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend(frameon=False)

    return _svg(draw, _WIDTH, 2.6)


def histogram(
    values: Sequence[float], x_label: str, *, bins: int = 30, marks: Mapping[str, float] | None = None
) -> str:
    """Draw how often values fall where, with named vertical marks such as the median."""

    def draw(axes: Axes) -> None:
        axes.hist(list(values), bins=bins, color=ACCENT, alpha=0.85)
        for index, (name, value) in enumerate((marks or {}).items()):
            axes.axvline(value, color=PALETTE[1 + index % 5], linewidth=1.4, label=f"{name} {value:,.4g}")
        axes.set_xlabel(x_label)
        axes.set_ylabel("count")
        if marks:
            axes.legend(frameon=False)

    return _svg(draw, _WIDTH, 2.2)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    x_label: str,
    *,
    intervals: Sequence[Sequence[float] | None] = (),
    baselines: Sequence[float] | None = None,
) -> str:
    """Draw horizontal bars, first label on top.

    Args:
        labels: of the bars.
        values: of the bars.
        x_label: what runs along the bottom, with its unit.
        intervals: (low, high) of each bar; None where it has none.
        baselines: what the majority answer gets instead of each value, drawn as a tick.
    """

    def draw(axes: Axes) -> None:
        places = list(range(len(labels)))
        axes.barh(places, list(values), color=ACCENT, alpha=0.85, height=0.65)
        for value, place, interval in zip(values, places, intervals, strict=False):
            if interval:
                reach = [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]
                axes.errorbar(value, place, xerr=reach, fmt="none", ecolor=_INK, capsize=3)
        if baselines is not None:
            look: dict[str, Any] = {"marker": "|", "s": 200, "linewidths": 2, "color": PALETTE[1]}
            axes.scatter(list(baselines), places, label="majority answer", **look)
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
        axes.set_yticks(places, list(labels))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)

    return _svg(draw, _WIDTH, 0.7 + 0.32 * max(len(labels), 2))


def calibration(bins: Sequence[tuple[float, float, int]]) -> str:
    """Draw the share of yes over P(yes) beside the diagonal; a dot's area says how many questions it stands for.

    Args:
        bins: mean P(yes), share of yes, number of questions.
    """

    def draw(axes: Axes) -> None:
        most = max(count for _, _, count in bins)
        axes.plot([0, 1], [0, 1], color=PALETTE[4], linewidth=1, linestyle="--", label="perfect")
        axes.scatter(
            [mean for mean, _, _ in bins],
            [share for _, share, _ in bins],
            s=[12 + 260 * count / most for _, _, count in bins],
            color=ACCENT,
            alpha=0.8,
            label="observed",
        )
        axes.set_xlabel("P(yes)")
        axes.set_ylabel("share of yes")
        axes.legend(frameon=False, markerscale=0.5)

    return _svg(draw, _WIDTH, 3.2)


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> str:
    """Draw a confusion matrix: rows are the truth, columns the answer, each cell its count and share of the row."""
    from matplotlib.patches import Rectangle

    def draw(axes: Axes) -> None:
        shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
        axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), aspect="equal")
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                share = shares[row][column]
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=ACCENT, alpha=_DEEPEST * share, edgecolor="none"))
                axes.text(column, row, f"{count:,}\n{share:.0%}", ha="center", va="center")
        axes.set_xticks(range(len(labels)), list(labels))
        axes.set_yticks(range(len(labels)), list(labels))
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
        axes.set_title(title, fontsize=11)
        axes.grid(visible=False)

    return _svg(draw, 2.6, 2.7)


def _svg(draw: Any, width: float, height: float) -> str:
    """Return the drawing as an <svg> that is at most `width` inches wide and shrinks with its page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as NewFigure

    with matplotlib.rc_context(_STYLE):
        figure: Figure = NewFigure(figsize=(width, height))
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]+; ?", "", text)  # the page's own
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable},{colour})")
    size = f'style="width:100%;max-width:{width * 110:.0f}px;height:auto"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" width="[\d.]+pt"', size, text, count=1)
