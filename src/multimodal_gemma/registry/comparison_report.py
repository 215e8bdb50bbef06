"""comparison.html: the candidate beside the champion, benchmark by benchmark, with the questions that changed sides.

It is made when a model is registered and not when it is evaluated: what an evaluation says must not depend on who
happens to be champion at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma.evaluation.statistics import Estimate, clustered_mean
from multimodal_gemma.reporting.page import Page

Row = Mapping[str, Any]
_MOST = 20  # questions listed on either side


def render(name: str, version: str, ours: Sequence[Row], theirs: Sequence[Row], *, confidence: float) -> str | None:
    """Return the page, self-contained.

    Args:
        name: the registered model.
        version: the champion's number.
        ours: rows of the candidate's predictions.
        theirs: rows of the champion's.
        confidence: of the paired intervals.

    Returns:
        HTML; None if they have no question in common.
    """
    other = {_key(row): row for row in theirs}
    pairs = [(row, other[_key(row)]) for row in ours if _key(row) in other]
    if not pairs:
        return None
    page = Page(
        "Candidate and champion",
        f"{name}: the candidate beside version {version} on {len(pairs):,} questions that both have answered. "
        f"Intervals cover {confidence:.0%}, paired by question and clustered by image: one that holds 0 is noise.",
    )
    benchmarks = list(dict.fromkeys(row["benchmark"] for row, _ in pairs))
    rows = []
    for benchmark in benchmarks:
        here = [(mine, its) for mine, its in pairs if mine["benchmark"] == benchmark]
        found = _difference(here, confidence)
        rows.append(
            (
                benchmark,
                _points(_mean(mine for mine, _ in here)),
                _points(_mean(its for _, its in here)),
                f"{100 * found.mean:+.1f}",
                f"{100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f}",
                sum(mine["score"] > its["score"] for mine, its in here),
                sum(mine["score"] < its["score"] for mine, its in here),
                len(here),
            )
        )
    page.section("Scores", "Percent, and the difference in points.")
    page.table(("benchmark", "candidate", "champion", "difference", "interval", "better", "worse", "questions"), rows)
    _changed(page, "Lost", "What the champion gets right and the candidate does not.", pairs, better=False)
    _changed(page, "Won", "What the candidate gets right and the champion does not.", pairs, better=True)
    return page.html()


def _changed(page: Page, heading: str, sentence: str, pairs: Sequence[tuple[Row, Row]], *, better: bool) -> None:
    sign = 1 if better else -1
    changed = [(mine, its) for mine, its in pairs if sign * (mine["score"] - its["score"]) >= 0.5]
    if not changed:
        return
    step = max(1, len(changed) // _MOST)
    shown = changed[::step][:_MOST]
    page.section(heading, f"{sentence} {len(shown)} of {len(changed):,}, drawn evenly.")
    page.table(
        ("benchmark", "image", "question", "candidate", "champion"),
        [
            (
                mine["benchmark"],
                mine["image"],
                mine["question"],
                mine.get("prediction", ""),
                its.get("prediction", ""),
            )
            for mine, its in shown
        ],
    )


def _difference(pairs: Sequence[tuple[Row, Row]], confidence: float) -> Estimate:
    return clustered_mean(
        [float(mine["score"]) - float(its["score"]) for mine, its in pairs],
        [str(mine["image"]) for mine, _ in pairs],
        confidence=confidence,
        bounds=(-1.0, 1.0),
    )


def _key(row: Row) -> tuple[str, int, str, str]:
    return (row["benchmark"], row["question_id"], row["image"], row["question"])


def _mean(rows: Any) -> float:
    scores = [float(row["score"]) for row in rows]
    return sum(scores) / len(scores)


def _points(value: float) -> str:
    return f"{100 * value:.1f}%"
