"""All runs of a folder side by side: `mmgemma runs`, and the page index.html that each run brings up to date."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import folder as run_folder
from multimodal_gemma.reporting.run_page import duration

PAGE = "index.html"
_COLUMNS = ("run", "status", "POPE accuracy", "VQA accuracy", "version", "gate", "time")


@dataclasses.dataclass(frozen=True)
class Row:
    """A run in one line.

    Attributes:
        name: of its folder.
        cells: texts of the columns after the first.
        report: its report, relative to the folder of all runs; "" if it has none.
    """

    name: str
    cells: tuple[str, ...]
    report: str


def rows(runs: Path) -> list[Row]:
    """Return a row a run, the latest first."""
    return [_row(folder) for folder in run_folder.newest(runs)]


def show(runs: Path) -> str:
    """Write the page, and return the table for a terminal.

    Raises:
        InputError: the folder holds no run.
    """
    from rich.console import Console
    from rich.table import Table

    found = rows(runs)
    if not found:
        raise InputError(f"runs: {runs} holds no run. Make one with mmgemma run, or give another folder.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, no_wrap=number == 0)
    for row in found:
        table.add_row(row.name, *row.cells)
    write(runs)
    console = Console(width=max(Console().width, 120), highlight=False)
    with console.capture() as capture:
        console.print(table)
    return f"{capture.get()}\n{runs / PAGE}"


def write(runs: Path) -> None:
    """Write index.html."""
    from multimodal_gemma.reporting.page import Link, Page

    page = Page("Runs", "The latest first. Intervals are clustered by image; a dash is a stage that was not reached.")
    page.table(_COLUMNS, [(Link(row.name, row.report), *row.cells) for row in rows(runs)])
    files.write_text(runs / PAGE, page.html())


def _row(folder: Path) -> Row:
    summary: Any = {}
    if (folder / run_folder.SUMMARY).is_file():
        summary = files.read_json(folder / run_folder.SUMMARY, "runs")
    scores, registry = summary.get("scores", {}), summary.get("registry", {})
    seconds = sum(stage["seconds"] for stage in summary.get("stages", []))
    version = f"{registry['version']} ({registry.get('alias') or 'no alias'})" if registry.get("version") else "-"
    cells = (
        run_folder.state(folder),
        _score(scores.get("pope_mean")),
        _score(scores.get("vqa")),
        version,
        str(registry.get("gate") or "-"),
        duration(seconds) if seconds else "-",
    )
    report = folder / "report.html"
    return Row(folder.name, cells, os.path.relpath(report, folder.parent) if report.is_file() else "")


def _score(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    interval: Sequence[float] | None = found.get("interval")
    return f"{found['accuracy']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
