"""What a check found."""

from __future__ import annotations

import dataclasses
from typing import Literal

State = Literal["ok", "failed", "unknown"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at, e.g. "quota".
        state: "unknown" where it could not be found out; a run is not stopped for that.
        told: what is so, in words.
        remedy: what to do where it failed, as a sentence.
    """

    check: str
    state: State
    told: str
    remedy: str = ""


def ok(check: str, told: str) -> Finding:
    """Everything is as a run needs it."""
    return Finding(check, "ok", told)


def failed(check: str, told: str, remedy: str) -> Finding:
    """A run would fail or wait for ever."""
    return Finding(check, "failed", told, remedy)


def unknown(check: str, told: str, remedy: str = "") -> Finding:
    """It could not be found out."""
    return Finding(check, "unknown", told, remedy)
