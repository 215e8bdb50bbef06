"""What a person sees of runs: one that goes on, line by line and what came of it; all of a folder side by side.

The table of all runs is `mmgemma runs`, and the page index.html that each run brings up to date.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import results as of_run
from multimodal_gemma.local.results import Record, Results
from multimodal_gemma.reporting.page import Cell, Link, Page
from multimodal_gemma.reporting.run_page import duration

PAGE = "index.html"
_COLUMNS = ("run", "status", "POPE accuracy", "VQA accuracy", "version", "gate", "time")
_STYLE = {"succeeded": "green", "reused": "cyan", "failed": "bold red", "skipped": "dim", "waiting": "dim"}


class Terminal:
    """Speaks to standard error while a run goes on, and to standard output about what came of it."""

    def __init__(self, command: str) -> None:
        """Take the command that goes on with the run."""
        self._command = command
        self._err = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._out = Console(file=sys.stdout, highlight=False, soft_wrap=True)

    def started(self, folder: Path, preset: str, *, continued: bool) -> None:
        """Say which run begins, or goes on, and where it lies."""
        verb = "continues, as it was interrupted: " if continued else ""
        self._err.print(f"[bold]run[/] {verb}preset {preset} in {folder}")
        if continued:
            self._err.print("  (a run of its own: give another --run-dir)")

    def begun(self, record: Record) -> None:
        """Say that a task begins."""
        self._err.print(f"[bold]>[/] {record.name}")

    def ended(self, record: Record) -> None:
        """Say how a task ended and how long it took."""
        self._err.print(f"  [{_STYLE[record.status]}]{record.status}[/] in {duration(record.seconds)}")

    def finished(
        self, status: str, records: dict[str, Record], results: Results, folder: Path, mlflow_uri: str
    ) -> None:
        """Print the table of stages, the scores, the version, where everything is, and what to do next."""
        self._out.print()
        self._out.print(_stages(records))
        for record in records.values():
            if record.status == "failed":
                self._failure(record)
        if results.pope or results.vqa:
            self._out.print(_scores(results))
        if results.registration:
            self._out.print(_version(results.registration), markup=False)
        self._out.print(f"run       {status}, {duration(sum(record.seconds for record in records.values()))}")
        for label, name in (("model", "model"), ("export", "export")):
            if name in results.folders:
                self._out.print(f"{label:<9} {results.folders[name]}", markup=False)
        self._out.print(f"mlflow    {mlflow_uri}", markup=False)
        self._out.print(f"report    {folder / 'report.html'}", markup=False)
        for line in self._next(status, results):
            self._out.print(f"next      {line}", markup=False)

    def _next(self, status: str, results: Results) -> list[str]:
        """Return what a person can do now."""
        if status == "interrupted":
            return [f"the same command continues this run: {self._command}"]
        if status == "failed":
            return [f"once the cause is mended, continue this run: {self._command}"]
        place = results.folders.get("export") or results.folders.get("model")
        lines = [f"mmgemma ask PICTURE QUESTION --model {place}", "make demo"] if place else []
        if results.refused:
            registered = results.registration
            lines.insert(0, f"the gate refused version {registered['version']}: {results.refused}")
            lines.insert(1, f"train longer or on more data; or mmgemma promote {registered['version']} by hand")
        return lines

    def _failure(self, record: Record) -> None:
        self._out.print(f"[bold red]{record.name} failed[/] (exit code {record.exit_code}). The last lines of its log:")
        for line in [record.sentence] if record.sentence else record.last_lines():
            self._out.print(f"  {line}", markup=False)
        self._out.print(f"  log: {record.log}\n", markup=False)


def _stages(records: dict[str, Record]) -> Table:
    table = _table()
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("status")
    for record in records.values():
        time = duration(record.seconds) if record.status in ("succeeded", "reused", "failed") else ""
        table.add_row(record.name, time, f"[{_STYLE[record.status]}]{record.status}[/]")
    return table


def _scores(results: Results) -> Table:
    asked = [results.names[kind] for kind, found in (("pope", results.pope), ("vqa", results.vqa)) if found]
    table = _table(title="; ".join(asked), title_justify="left")
    table.add_column("questions")
    for name in ("accuracy", "majority answer", "F1", "answers yes", "number"):
        table.add_column(name, justify="right")
    for setting, score in results.pope.items():
        figures = [f"{score[name]:.3f}" for name in ("accuracy", "majority_baseline", "f1", "yes_ratio")]
        table.add_row(f"presence, {setting}", *figures, f"{score['count']:,}")
    if vqa := results.vqa:
        figures = [f"{vqa[name]:.3f}" for name in ("accuracy", "majority_baseline")]
        table.add_row("open", *figures, "", "", f"{vqa['count']:,}")
    return table


def _version(registration: dict[str, Any]) -> str:
    alias = f"alias {registration['alias']}" if registration.get("alias") else "no alias"
    return f"\nversion   {registration['version']} of {registration['name']}, {alias}, gate {registration['gate']}"


def _table(**more: Any) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", **more)


def show(runs: Path) -> str:
    """Write the page of all runs, and return their table for a terminal.

    Raises:
        InputError: the folder holds no run.
    """
    folders = of_run.newest(runs)
    if not folders:
        raise InputError(f"runs: {runs} holds no run. Make one with mmgemma run, or give another folder.")
    table = _table()
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, no_wrap=number == 0)
    for folder in folders:
        table.add_row(folder.name, *cells(folder))
    write_index(runs)
    console = Console(width=max(Console().width, 120), highlight=False)
    with console.capture() as capture:
        console.print(table)
    return f"{capture.get()}\n{runs / PAGE}"


def write_index(runs: Path) -> None:
    """Write index.html."""
    page = Page("Runs", "The latest first. Intervals are clustered by image; a dash is a stage that was not reached.")
    rows: list[tuple[Cell, ...]] = []
    for folder in of_run.newest(runs):
        report = folder / "report.html"
        place = os.path.relpath(report, runs) if report.is_file() else ""
        rows.append((Link(folder.name, place), *cells(folder)))
    page.table(_COLUMNS, rows)
    files.write_text(runs / PAGE, page.html())


def cells(folder: Path) -> tuple[str, ...]:
    """Return what the tables say of a run, after its name."""
    stated = folder / of_run.SUMMARY
    summary: Any = files.read_json(stated, "runs") if stated.is_file() else {}
    scores, registry = summary.get("scores", {}), summary.get("registry", {})
    seconds = sum(stage["seconds"] for stage in summary.get("stages", []))
    return (
        of_run.state(folder),
        _score(scores.get("pope_mean")),
        _score(scores.get("vqa")),
        f"{registry['version']} ({registry.get('alias') or 'no alias'})" if registry.get("version") else "-",
        {"failed": "refused"}.get(gate := str(registry.get("gate") or "-"), gate),
        duration(seconds) if seconds else "-",
    )


def _score(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    interval = found.get("interval")
    return f"{found['accuracy']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
