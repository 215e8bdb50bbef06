"""What is tried again when a server is asked, and for how long: one place for the Kubernetes API and for KFP's.

A lost connection, 408, 429 and 5xx are asked again with growing pauses, or after what `Retry-After` says; an expired
token is renewed once. Anything else is an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

TIMEOUT = (10, 60)  # seconds to connect, and to the answer
_LONGEST_PAUSE = 30.0  # seconds between two tries
TRIED_AGAIN = {408, 429, 500, 502, 503, 504}
_Answer = TypeVar("_Answer")


class Refused(Exception):
    """The server understood and refused.

    Attributes:
        status: HTTP status.
        message: what the server said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Unanswered(Exception):
    """No answer came in the time that was given; the text says what came instead."""


def persist(
    send: Callable[[], _Answer],
    refusal: type[Exception],
    *,
    seconds: float,
    pause: float,
    renew: Callable[[], None],
    told: Callable[[str], None],
) -> _Answer:
    """Return what a request is answered.

    Args:
        send: sends it.
        refusal: the generated client's exception for an answer that is none; it has `status` and `headers`.
        seconds: without any answer, before giving up.
        pause: seconds before the first new try; it doubles from try to try.
        renew: called once after a 401; makes later requests carry new credentials.
        told: called with what went wrong before each new try.

    Raises:
        Exception: `refusal`, for a reason that trying again does not change.
        Unanswered: the time is over.
    """
    from urllib3.exceptions import HTTPError

    deadline, renewed = time.monotonic() + seconds, False
    while True:
        wait = None
        try:
            return send()
        except (HTTPError, OSError) as error:
            trouble = broken(error)
        except refusal as error:
            status = getattr(error, "status", None)
            if status == 401 and not renewed:
                renewed = True
                renew()
                continue
            if status not in TRIED_AGAIN:
                raise
            trouble, wait = f"it answers {status}", _retry_after(getattr(error, "headers", None))
        if time.monotonic() > deadline:
            raise Unanswered(trouble)
        told(trouble)
        time.sleep(min(pause if wait is None else wait, _LONGEST_PAUSE))
        pause = min(pause * 2, _LONGEST_PAUSE)


def broken(error: Exception) -> str:
    """Name a network failure in a few words; urllib3's own text shows memory addresses."""
    from urllib3.exceptions import NameResolutionError, NewConnectionError, SSLError, TimeoutError

    kinds: list[tuple[type[Exception], str]] = [
        (NameResolutionError, "its name is not known"),
        (NewConnectionError, "nothing listens there"),
        (TimeoutError, "it does not answer in time"),
        (SSLError, "its certificate is not trusted"),
    ]
    return next((words for kind, words in kinds if isinstance(error, kind)), "the connection was lost")


def _retry_after(headers: Any) -> float | None:
    value = str((headers or {}).get("Retry-After", ""))
    return float(value) if value.isdecimal() else None
