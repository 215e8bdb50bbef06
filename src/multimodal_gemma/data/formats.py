"""Files of conversations as they are published, read row by row.

A JSON list, JSON lines (either packed by gzip, with or without a byte order mark) or Parquet; what a row may look like
is in `conversations`. A row that breaks its format is a fault with a reason, never the end of the run by itself. No
file is ever in memory whole.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from multimodal_gemma.data.conversations import COLUMNS, DECODER, TURNS, Absurd, Conversation, identity, listed, parse
from multimodal_gemma.errors import InputError, Unusable

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".parquet")
_PIECE = 1 << 20  # characters read at a time
_SPACE = " \t\n\r\ufeff"  # joined files have byte order marks in their middle
_SPACES = re.compile(f"[{_SPACE}]*")
_AFTER = (*_SPACE, ",", "]")  # what may follow an item of a list
_TRUNCATED = "It may be truncated: fetch it again."
_CUT = 64  # characters from the end within which a fault may be a file that broke off
_OTHERS = {  # what else people have, by its first bytes
    b"PK\x03\x04": "a zip archive. Unpack it and name the file of conversations in it",
    b"\xff\xfe": "UTF-16 or UTF-32. Save it as UTF-8",
    b"\xfe\xff": "UTF-16. Save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32. Save it as UTF-8",
    **dict.fromkeys((b"ARROW1", b"\xff\xff\xff\xff"), "an Arrow file. Write it as Parquet (Dataset.to_parquet)"),
    b"\x28\xb5\x2f\xfd": "packed by zstd. Unpack it, or pack it by gzip",
    b"\xfd7zXZ": "packed by xz. Unpack it, or pack it by gzip",
    b"BZh": "packed by bzip2. Unpack it, or pack it by gzip",
}
_ROWS = 16  # of Parquet that are in memory at once, pictures included


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A conversation that breaks the format."""

    index: int  # its place in the file
    id: str  # as published, else the index
    kind: str  # the reason as a word to count by, e.g. "unknown-speaker"
    reason: str  # the reason in words


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What became of one published row."""

    read: Conversation | Fault  # the conversation, or why there is none
    picture: bytes | None = None  # the image's bytes where they stand in the row itself


def read(path: Path, name: str, columns: Mapping[str, str] | None = None, max_bytes: int = 1 << 40) -> Iterator[Row]:
    """Read a file of conversations.

    Args:
        path: the file on this machine.
        name: how to call it in a sentence.
        columns: the file's own name of one of `conversations.COLUMNS` where it is another.
        max_bytes: of what a compressed file may grow to.

    Yields:
        One row each, in order.

    Raises:
        InputError: the file is none of the formats, or broken; rows before the fault have been yielded.
    """
    for index, entry in enumerate(_entries(path, name, columns or {}, max_bytes)):
        try:
            if columns and isinstance(entry, dict):
                others = {key: value for key, value in entry.items() if key not in columns}
                entry = others | {ours: entry.get(theirs) for ours, theirs in columns.items()}
            yield Row(*parse(entry, index))
        except Unusable as faulty:
            yield Row(Fault(index, identity(entry, index), faulty.kind, faulty.reason))


def _entries(path: Path, name: str, columns: Mapping[str, str], max_bytes: int) -> Iterator[Any]:
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 12)
    except OSError as error:
        raise InputError(f"conversations: {name} cannot be read ({error.strerror}). Check the path.") from None
    if start.startswith(b"PAR1"):
        yield from _parquet(path, name, columns)
        return
    if found := next((said for known, said in _OTHERS.items() if start.startswith(known)), ""):
        raise InputError(f"conversations: {name} is {found}.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"conversations: {name} is a web page, not conversations. Check the address.")
    no_text = InputError(f"conversations: {name} is no UTF-8 text. Give JSON, JSON lines or Parquet.")
    packed = start.startswith(b"\x1f\x8b")
    if not packed and b"\0" in start:
        raise no_text
    try:
        with path.open("rb") as raw:
            binary: Any = _Capped(raw, name, max_bytes) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig") as text:  # a line ends with \n, \r\n or \r
                yield from _json(text, name)
    except UnicodeDecodeError:
        raise no_text from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"conversations: {name} is no whole gzip file ({error}). Fetch it again.") from None


class _Capped(gzip.GzipFile):
    """A compressed file, unpacked up to a limit."""

    def __init__(self, stream: Any, name: str, most: int) -> None:
        super().__init__(fileobj=stream)
        self._called, self._most, self._seen = name, most, 0

    def read1(self, size: int = -1) -> bytes:
        piece = super().read1(size)
        self._seen += len(piece)
        if self._seen > self._most:
            limit = f"{self._most:,} bytes (data.max_file_bytes)"
            raise InputError(f"conversations: {self._called} unpacks to more than {limit}.")
        return piece


def _json(stream: TextIO, name: str) -> Iterator[Any]:
    skipped = ""
    while (start := stream.read(1)) and start in _SPACE:
        skipped += start
    if start == "[":
        yield from _listed(stream, name)
    elif start == "{":
        first = start + stream.readline()
        yield from _lines(itertools.chain([first], stream), name, 1 + skipped.count("\n"))
    else:
        found = "is neither a JSON list nor JSON lines" if start else "is empty"
        raise InputError(f"conversations: {name} {found}. Give JSON, JSON lines or Parquet.")


def _lines(lines: Iterable[str], name: str, first: int) -> Iterator[Any]:
    for number, line in enumerate(lines, start=first):
        plain = line.strip(_SPACE)
        if not plain:
            continue
        try:
            yield DECODER.decode(plain)
        except RecursionError:
            yield Absurd()
        except json.JSONDecodeError as error:
            alone = number == first and plain == "{"
            hint = "One object over many lines is no list of conversations." if alone else _TRUNCATED
            raise InputError(
                f"conversations: line {number:,} of {name} is no whole JSON document ({error.msg}, column "
                f"{error.colno}). {hint}"
            ) from None


def _listed(stream: TextIO, name: str) -> Iterator[Any]:
    """Yield the items of a JSON list, which may be larger than memory; its bracket has been read."""
    count, text, place = 0, "", 0

    def more() -> bool:
        nonlocal text, place
        piece = stream.read(max(_PIECE, len(text) - place))
        text, place = text[place:] + piece, 0
        return bool(piece)

    def sign() -> str:
        """Return the next character that is no space, "" at the end of the file."""
        nonlocal place
        while (place := _SPACES.match(text, place).end()) == len(text):  # type: ignore[union-attr]
            if not more():
                return ""
        return text[place]

    def broken(what: str, hint: str = _TRUNCATED) -> InputError:
        return InputError(
            f"conversations: {name} is no whole JSON document: {what} after {count:,} conversations. {hint}"
        )

    def item() -> Any:
        nonlocal place
        while True:
            fault = "it breaks off"
            try:
                value, end = DECODER.raw_decode(text, place)
                if text[end : end + 1] in _AFTER:  # else a number may go on in the next piece
                    place = end
                    return value
            except RecursionError:
                raise InputError(
                    f"conversations: conversation {count} of {name} is nested too deeply. Correct or remove it."
                ) from None
            except json.JSONDecodeError as error:
                fault = error.msg
                if not fault.startswith("Unterminated") and error.pos < len(text) - _CUT:
                    raise broken(fault, "Correct it there.") from None
            if not more():
                raise broken(fault)

    following = "" if sign() == "]" else ","
    while following == ",":
        sign()
        yield item()
        count += 1
        if (following := sign()) not in (",", "]"):
            raise broken("a comma is missing" if following else "it breaks off")
        place += following == ","
    place += 1
    if sign():
        raise broken("more text follows the list", "Give one list, or one conversation a line (JSON lines).")


def _parquet(path: Path, name: str, columns: Mapping[str, str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            there = table.schema_arrow.names
            known = [columns.get(key, key) for key in TURNS]
            if not any(key in there for key in known):
                raise InputError(
                    f"conversations: {name} has the columns {listed(there)} and none of {', '.join(known)}. "
                    "Name its own with data.columns, e.g. data.columns={conversations: dialogue}."
                )
            wanted = [field for field in there if field in ("set", *COLUMNS, *columns.values())]
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"conversations: {name} is no readable Parquet file ({reason}). Fetch it again.") from None
