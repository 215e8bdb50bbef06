"""A long JSON list, one item at a time.

Read at once, a file of 230 MB is a text of up to four times that in memory (one character beyond Latin is enough to
double it) beside everything that is made of it. Read in pieces, what stays is what is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma import files

_PIECE = 1 << 20  # characters read at a time
_SPACE = " \t\n\r"
_AFTER = (*_SPACE, ",", "]")  # what may follow an item


class _Odd(Exception):
    """The file is something else than a whole list; `files.read_json` knows how to say what."""


def items(path: Path, what: str) -> Iterator[Any]:
    """Yield the items of a JSON file that holds a list.

    Args:
        path: the file.
        what: how to call it in an error, e.g. "conversations".

    Raises:
        InputError: the file is absent, no UTF-8, or no whole JSON document; items before the fault have been yielded.
        NotAList: the document is no list.
    """
    try:
        yield from _items(path)
    except (_Odd, OSError, ValueError):
        value = files.read_json(path, what)  # says what is wrong with it
        raise NotAList(value) from None


class NotAList(Exception):
    """A JSON document is no list.

    Attributes:
        value: what it is.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(type(value).__name__)
        self.value = value


def _items(path: Path) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8") as stream:
        text, place = stream.read(_PIECE), 0

        def sign() -> str:
            """Return the next character that is no space, "" at the end of the file."""
            nonlocal text, place
            while True:
                while place < len(text) and text[place] in _SPACE:
                    place += 1
                if place < len(text):
                    return text[place]
                text, place = stream.read(_PIECE), 0
                if not text:
                    return ""

        if sign() != "[":
            raise _Odd
        place += 1
        if sign() == "]":
            place += 1
        else:
            while True:
                sign()
                while True:
                    try:
                        value, end = decode(text, place)
                        whole = text[end : end + 1] in _AFTER  # else a number may go on in the next piece
                    except json.JSONDecodeError:
                        whole = False
                    if whole:
                        break
                    more = stream.read(max(_PIECE, len(text) - place))
                    if not more:
                        raise _Odd
                    text, place = text[place:] + more, 0
                place = end
                yield value
                following = sign()
                place += 1
                if following == "]":
                    break
                if following != ",":
                    raise _Odd
        if sign():
            raise _Odd
