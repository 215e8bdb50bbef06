"""The bytes of one file over a connection that may break: what has arrived is kept, and only the rest is asked for.

A photograph costs little to ask for again; an archive of 19 GB does not. Every attempt continues where the last one
ended, as long as the server says that the file is still the same, and within one process or the next. A connection
that trickles is as good as broken: it is given up after half a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying
from multimodal_gemma.data.sources.base import Unavailable, Unreachable

PATIENCE = 30.0  # seconds after which the pace is judged, again and again
SLOWEST = 2_000  # bytes a second; below it a photograph would take minutes, and sixteen of them would stop the queue
_CHUNK = 1 << 18
_DIFFERS = "its sha256 is not the one that was recorded with it"


class Stream(Protocol):
    """What urllib3's answers can do."""

    def read1(self, amt: int, /) -> bytes:
        """Return what has arrived, at most `amt` bytes; b"" at the end."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """An answer: a file, or the rest of it.

    Attributes:
        stream: the bytes to come.
        start: position in the file of the first of them.
        total: size of the whole file, None if the server does not say.
        identity: what proves that a later answer is about the same bytes (an ETag), "" if there is no such thing.
        sha256: of the whole file, as whoever put it there recorded it; "" if nobody did.
    """

    stream: Stream
    start: int
    total: int | None
    identity: str
    sha256: str = ""


Ask = Callable[[int, str], contextlib.AbstractContextManager[Part]]
"""Asks for a file from a position on, given the identity of the bytes before it. A server that holds another file by
now, or knows no ranges, answers with the whole of it."""


def to_memory(ask: Ask, max_bytes: int) -> bytes:
    """Return a file's bytes.

    Args:
        ask: asks the server.
        max_bytes: a larger file is not read to its end.

    Raises:
        Unavailable: it is larger, or cannot be had.
    """
    with io.BytesIO() as sink:
        identity = _Identity()
        retrying.call(lambda: _attempt(ask, sink, identity, max_bytes))
        content = sink.getvalue()
    if identity.sha256 and hashlib.sha256(content).hexdigest() != identity.sha256:
        raise Unavailable(_DIFFERS)
    return content


def to_digest(ask: Ask) -> str:
    """Return the sha256 of a file's bytes, read to their end and kept nowhere.

    Raises:
        Unavailable: it cannot be had.
    """

    def attempt() -> str:
        digest, held = hashlib.sha256(), 0
        with ask(0, "") as part:
            for piece in _paced(part.stream):
                digest.update(piece)
                held += len(piece)
            if part.total is not None and held != part.total:
                raise retrying.Transient("the connection broke")
        return digest.hexdigest()

    return retrying.call(attempt)


def to_file(ask: Ask, destination: Path, max_bytes: int | None = None) -> None:
    """Write a file, continuing what an earlier call left beside `destination` when its process was killed.

    Args:
        ask: asks the server.
        destination: appears whole or not at all.
        max_bytes: a larger file is refused; None takes any.

    Raises:
        Unavailable: it is larger, or cannot be had; what has arrived stays in `NAME.part` for the next call.
        InputError: the place cannot be written, or the disk is full.
    """
    part, record = part_of(destination), destination.with_name(f"{destination.name}.part.json")
    identity = _Identity(record)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not identity.value:
            part.unlink(missing_ok=True)
        with part.open("r+b" if part.is_file() else "w+b") as sink:
            sink.seek(0, io.SEEK_END)
            try:
                retrying.call(lambda: _attempt(ask, sink, identity, max_bytes))
                sink.flush()
                if identity.sha256 and files.sha256_file(part) != identity.sha256:
                    raise Unavailable(_DIFFERS)
            except Unreachable:
                raise
            except Unavailable:
                part.unlink(missing_ok=True)
                record.unlink(missing_ok=True)
                raise
        with files.atomic_path(destination) as temporary:
            part.replace(temporary)
        record.unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(destination, error) from error


def part_of(destination: Path) -> Path:
    """Return where the bytes of an unfinished file lie."""
    return destination.with_name(f"{destination.name}.part")


class _Identity:
    """What the bytes held so far belong to; kept in a file where the bytes are."""

    def __init__(self, record: Path | None = None) -> None:
        self._record = record
        self.value = self.sha256 = ""
        if record is not None and record.is_file() and record.with_suffix("").is_file():
            self.value = str(files.read_json(record, "download").get("identity", ""))

    def set(self, value: str) -> None:
        if value != self.value and self._record is not None:
            files.write_json(self._record, {"identity": value})
        self.value = value


def _attempt(ask: Ask, sink: BinaryIO, identity: _Identity, max_bytes: int | None) -> None:
    # The last byte is asked for again: a range that begins at the end of a complete file would be refused.
    held = max(sink.tell() - 1, 0) if identity.value else 0
    with ask(held, identity.value if held else "") as part:
        if part.start not in (0, held):
            raise Unavailable("the server answers with another part of the file")
        held = part.start
        sink.seek(held)
        sink.truncate()
        sink.flush()
        identity.set(part.identity)
        identity.sha256 = part.sha256
        if max_bytes is not None and part.total is not None and part.total > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        for piece in _paced(part.stream):
            sink.write(piece)
            held += len(piece)
            if max_bytes is not None and held > max_bytes:
                raise Unavailable(f"larger than {max_bytes:,} bytes")
        if part.total is not None and held != part.total:
            raise retrying.Transient("the connection broke")


def _paced(stream: Stream) -> Iterator[bytes]:
    since, arrived = time.monotonic(), 0
    while piece := stream.read1(_CHUNK):
        yield piece
        arrived += len(piece)
        now = time.monotonic()
        if now - since >= PATIENCE:
            if arrived < SLOWEST * (now - since):
                raise retrying.Transient(f"slower than {SLOWEST:,} bytes a second")
            since, arrived = now, 0
