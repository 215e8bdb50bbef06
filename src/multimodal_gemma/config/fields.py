"""Field kinds of the configuration: a choice, a bounded number, a location.

Each adds a rule to a dataclass field's metadata; `check` applies the rules and speaks in one sentence.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from multimodal_gemma.errors import InputError


def choice(*options: str) -> Any:
    """Return a string field that takes one of `options`; the first is the default."""
    return dataclasses.field(default=options[0], metadata={"options": options})


def number(default: float | int | str | None, *, low: float | None = None, high: float | None = None) -> Any:
    """Return a number field within [low, high]; its default may be a word or nothing instead."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def location(default: str) -> Any:
    """Return a field that holds a URI or a path of this machine; a path is made an absolute file:// URI."""
    return dataclasses.field(default=default, metadata={"location": True})


def locations(*default: str) -> Any:
    """Return a field that holds a list of locations; a text is a list of one, `[A,B]` one of several."""
    return dataclasses.field(default_factory=lambda: [*default], metadata={"locations": True})


def check(value: Any, where: str = "") -> None:
    """Apply the rules of every field, sections included.

    Args:
        value: a configuration dataclass.
        where: dotted name of `value`, for messages.

    Raises:
        InputError: a field breaks its rule; the sentence names the key, its value and what is allowed.
    """
    for field in dataclasses.fields(value):
        key, item = f"{where}{field.name}", getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            check(item, f"{key}.")
            continue
        options = field.metadata.get("options")
        if options and isinstance(item, list):
            if wrong := [one for place, one in enumerate(item) if one not in options or one in item[:place]]:
                raise InputError(
                    f"config: {key} holds {wrong[0]!r}, which is not allowed or stands there twice. "
                    f"Choose among {', '.join(options)}."
                )
            continue
        if options and item not in options:
            raise InputError(f"config: {key}={item!r} is not allowed. Choose one of {', '.join(options)}.")
        if item is None or not isinstance(item, int | float) or isinstance(item, bool):
            continue
        low, high = field.metadata.get("low"), field.metadata.get("high")
        if not math.isfinite(item) or (low is not None and item < low) or (high is not None and item > high):
            allowed = f"at least {low:g}" if high is None else f"between {low or 0:g} and {high:g}"
            raise InputError(f"config: {key}={item} is not allowed. Give a number that is {allowed}.")
