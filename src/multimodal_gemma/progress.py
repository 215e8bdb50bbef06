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
BYTES = "byte"  # the unit of what is shown in MB
_LINE_EVERY = 15.0  # seconds between plain lines


class Progress:
    """Counts work done and shows it.

    Args:
        what: the work, e.g. "train".
        total: how many units there are; None if unknown.
        unit: what is counted, e.g. "image", or BYTES.
        done: units that were done before (a resumed stage).
        name: which file it is, where `what` is done to several.
    """

    def __init__(self, what: str, total: int | None, unit: str, *, done: int = 0, name: str = "") -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = self._before = done
        self._start = self._last = time.monotonic()
        self._figures = ""
        self._log = logs.get(what)
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "delay": 1.0} if unit == BYTES else {"unit": unit}
            label = f"{what} {name}".rstrip()
            self._bar = tqdm(total=total, initial=done, desc=label, leave=False, dynamic_ncols=True, **shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
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

    def reach(self, units: int) -> None:
        """Show that `units` are done in all, which may be fewer than before: a file that begins anew."""
        self.advance(units - self._done)

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        size, unit, per_second = (1e6, "MB", " MB/s") if self._unit == BYTES else (1, f"{self._unit}s", "/s")
        count = f"{self._done / size:,.0f}"
        left = ""
        if self._total:
            count += f" of {self._total / size:,.0f}"
            left = f", {max(self._total - self._done, 0) / rate:.0f} s left" if rate > 0 else ""
        figures = f", {self._figures}" if self._figures else ""
        name = f"{self._name}: " if self._name else ""
        return f"{name}{count} {unit}, {rate / size:.1f}{per_second}{left}{figures}"


def track(items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
    """Yield `items` one by one, counting them."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
