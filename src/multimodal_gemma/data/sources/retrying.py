"""Ask again, a few times, when the fault is likely to pass: a busy server, a broken connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from multimodal_gemma.data.sources.base import Unreachable

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds; doubles with each attempt, and is jittered so that many clients do not come back at once
LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait


class Transient(Exception):
    """A fault that another attempt may not meet.

    Args:
        reason: short, for the record of what could not be had.
        wait: seconds that the server asked to wait; None if it said nothing.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def call(attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns, called at most `ATTEMPTS` times.

    Raises:
        Unreachable: each attempt ended in `Transient`; other exceptions pass at once.
    """
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except Transient as fault:
            last = fault
        if number + 1 < ATTEMPTS:
            wait = FIRST_WAIT * 2**number * random.uniform(0.5, 1.5)
            time.sleep(min(max(wait, last.wait or 0.0), LONGEST_WAIT))
    raise Unreachable(f"{last}, {ATTEMPTS} times") from None


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date in it is not read, the ordinary wait is long enough."""
    return float(value) if value is not None and value.strip().isdigit() else None
