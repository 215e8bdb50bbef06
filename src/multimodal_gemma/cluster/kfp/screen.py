"""A run for people: a table that is repainted on a terminal, and a line a change everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from multimodal_gemma import logs
from multimodal_gemma.cluster.kfp.story import Row, Snapshot

_log = logs.get("submit")
_STYLES = {
    "succeeded": "green",
    "reused": "cyan",
    "running": "bold yellow",
    "pending": "yellow",
    "stopping": "yellow",
    "failed": "bold red",
    "stopped": "red",
}
_SILENT = {"waiting", "not run"}  # states that are no event
_HOUR = 3600


def picture(snapshot: Snapshot, title: str, trouble: str = "") -> Group:
    """Return the run as a table under its name.

    Args:
        snapshot: the run.
        title: name of the run.
        trouble: what keeps the server from being asked at the moment.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("task")
    made.add_column("state")
    made.add_column("time", justify="right")
    made.add_column("tries", justify="right")
    made.add_column("why", overflow="fold")
    for row in snapshot.rows:
        style = _STYLES.get(row.state, "dim")
        time = "" if row.seconds is None else duration(row.seconds)
        tries = "" if row.tries is None else str(row.tries)
        made.add_row(row.name, f"[{style}]{row.state}[/]", time, tries, row.reason.replace("[", "\\["))
    if all(not row.reason for row in snapshot.rows):
        made.columns.pop()
    below = [Text(f"The run goes on, but {trouble}.", style="yellow")] if trouble else []
    return Group(Text(title, style="bold"), made, *below)


def duration(seconds: float) -> str:
    """Return a time as people say it, e.g. "41 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if seconds < _HOUR:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


class Screen:
    """Shows snapshots as they come.

    Args:
        title: name of the run.
        console: where to; standard error by default.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title, self._console = title, console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last: Snapshot | None = None
        self._trouble = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Take the terminal, where there is one, until the block ends."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""
        recovered, self._trouble = bool(self._trouble), ""
        if self._live is not None:
            self._live.update(picture(snapshot, self._title), refresh=True)
        else:
            if recovered:
                _log.info("the server answers again")
            for line in changes(self._last, snapshot):
                _log.info(line)
        self._last = snapshot

    def trouble(self, text: str) -> None:
        """Show that the server does not answer; the same trouble is said once."""
        if text == self._trouble:
            return
        self._trouble = text
        if self._live is not None and self._last is not None:
            self._live.update(picture(self._last, self._title, text), refresh=True)
        else:
            _log.warning(text)


def changes(before: Snapshot | None, after: Snapshot) -> list[str]:
    """Return a line for each task that is in another state, or in another try, than before."""
    known = {row.name: row for row in before.rows} if before else {}
    return [_line(row) for row in after.rows if _event(known.get(row.name), row)]


def _event(before: Row | None, after: Row) -> bool:
    if before is None:
        return after.state not in _SILENT
    if after.state != before.state:
        return after.state != "not run"
    return (after.tries or 0) > max(before.tries or 0, 1)


def _line(row: Row) -> str:
    time = (
        f" in {duration(row.seconds)}"
        if row.seconds is not None and row.state not in ("running", "pending", "reused")
        else ""
    )
    tries = f", try {row.tries}" if (row.tries or 0) > 1 else ""
    reason = f" ({row.reason})" if row.reason else ""
    return f"{row.name}: {row.state}{time}{tries}{reason}"


def print_final(snapshot: Snapshot, title: str) -> None:
    """Print the finished run to standard output, unless it stands on that very terminal already."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        Console(file=sys.stdout, highlight=False, soft_wrap=True).print(picture(snapshot, title))
