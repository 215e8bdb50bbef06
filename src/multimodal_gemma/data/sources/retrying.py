"""Ask again, for as long as there is hope, when the fault is likely to pass: a busy server, a broken connection.

What ends the asking is time without progress, not a number of attempts. Every byte that arrives anew starts that time
again, so that an archive gets through a bad evening. The time is the place's own, shared by all threads that ask it: a
host that is down ends a download once, and not once for each of 80,000 images. One file that always fails while the
place gives others is given up sooner.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from multimodal_gemma import logs
from multimodal_gemma.data.sources.base import Unavailable, Unreachable
from multimodal_gemma.errors import InputError

T = TypeVar("T")

LIMIT = 600.0  # seconds without progress after which a place is down
ALONE = 120.0  # the same of one of many files, while the place gives others
FIRST_WAIT = 0.5  # seconds; doubles with each attempt, and is jittered so that many clients do not come back at once
LONGEST_WAIT = 30.0  # seconds, unless the server asks for more
_SAY_EVERY = 60.0  # seconds between two lines about a place that is silent
_SAY_FIRST = 10.0  # seconds after which the first of them comes

now = time.monotonic
sleep = time.sleep


class Transient(Exception):
    """A fault that another attempt may not meet.

    Args:
        reason: short, for the record of what could not be had.
        wait: seconds that the server asked to wait; None if it said nothing.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Patience:
    """How long one place may go without giving anything; for all threads that ask it.

    Args:
        place: the location, for what is logged.
        limit: seconds.
    """

    def __init__(self, place: str, limit: float = LIMIT) -> None:
        self._place, self._limit = place, limit
        self._silent: float | None = None  # when the first fault since the last progress was met
        self._say = 0.0  # when to speak of it next
        self._own = threading.local()  # the same of the file that a thread asks for
        self._lock = threading.Lock()

    def progressed(self) -> None:
        """Note that the place has given something new, to the file that this thread asks for."""
        self._silent = self._own.silent = None

    def call(self, attempt: Callable[[], T], *, one_of_many: bool = False) -> T:
        """Return what `attempt` returns, called until time without progress is up.

        Args:
            attempt: raises `Transient` for a fault that may pass.
            one_of_many: the download goes on without it, so it may be given up while the place gives others.

        Raises:
            Unreachable: the place gave nothing for so long; other exceptions pass at once.
            Unavailable: it gave others, but not this.
        """
        self._own.silent, wait = None, FIRST_WAIT
        while True:
            try:
                result = attempt()
            except Transient as fault:
                if self._own.silent is None:
                    wait = FIRST_WAIT
                left = self._left(fault, one_of_many)
                pause = min(wait * random.uniform(0.5, 1.5), LONGEST_WAIT)
                sleep(min(max(pause, fault.wait or 0.0), left))
                wait *= 2
            except Unreachable:
                raise
            except (Unavailable, InputError):
                self._silent = None  # an answer, if not the wanted one
                raise
            else:
                self._silent = None
                return result

    def _left(self, fault: Transient, one_of_many: bool) -> float:
        """Return the seconds that are left for other attempts."""
        moment = now()
        with self._lock:
            if self._silent is None:
                self._silent, self._say = moment, moment + _SAY_FIRST
            if self._own.silent is None:
                self._own.silent = moment
            place, own = moment - self._silent, moment - self._own.silent
            if say := moment >= self._say and place < self._limit:
                self._say = moment + _SAY_EVERY
        if say:
            logs.get("download").warning(
                f"{self._place} gives nothing ({fault}) for {place:.0f} s; it is asked again until "
                f"{_span(self._limit)} are over"
            )
        limit = min(ALONE, self._limit) if one_of_many and place < own else self._limit
        if place >= self._limit:
            raise Unreachable(f"{fault}, for {_span(self._limit)}") from None
        if own >= limit:
            raise Unavailable(f"{fault}, for {_span(limit)} in which other files came") from None
        return min(limit - own, self._limit - place)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date in it is not read, the ordinary wait is long enough."""
    return float(value) if value is not None and value.strip().isdigit() else None
