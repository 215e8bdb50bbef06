"""Progress for people and for pods.

On a terminal: a tqdm bar. Elsewhere, where a bar would fill the log with carriage returns: a plain line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

from multimodal_gemma import logs

T = TypeVar("T")
_LINE_EVERY = 15.0  # seconds between plain lines


class Progress:
    """Counts work done and shows it.

    Args:
        what: the work, e.g. "train".
        total: how many units there are; None if unknown.
        unit: what is counted, e.g. "image".
        done: units that were done before (a resumed stage).
    """

    def __init__(self, what: str, total: int | None, unit: str, *, done: int = 0) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._before = done
        self._start = self._last = time.monotonic()
        self._figures = ""
        self._log = logs.get(what)
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, units: int = 1, **figures: str) -> None:
        """Count `units` more, and show `figures` (name=text) beside the count."""
        self._done += units
        if figures:
            self._figures = ", ".join(f"{name} {text}" for name, text in figures.items())
        if self._bar is not None:
            self._bar.update(units)
            if figures:
                self._bar.set_postfix_str(self._figures, refresh=False)
            return
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY:
            self._last = now
            self._log.info(self._line(now))

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        count = f"{self._done:,}"
        left = ""
        if self._total:
            count += f" of {self._total:,}"
            left = f", {max(self._total - self._done, 0) / rate:.0f} s left" if rate else ""
        figures = f", {self._figures}" if self._figures else ""
        return f"{count} {self._unit}s, {rate:.1f}/s{left}{figures}"


def track(items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
    """Yield `items` one by one, counting them."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
