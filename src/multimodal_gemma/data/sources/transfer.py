"""Files over a connection that may break: what has arrived is kept, and only the rest is asked for.

A photograph costs little to ask for again; an archive of 19 GB does not. Every attempt continues where the last one
ended, as long as the server says that the file is still the same, and within one process or the next. A connection
that trickles is as good as broken: it is given up after half a minute.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, Self, TypeVar

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying
from multimodal_gemma.data.sources.base import Source, Unavailable, Unreachable, check_size
from multimodal_gemma.progress import BYTES, Progress

PATIENCE = 30.0  # seconds after which the pace is judged, again and again
SLOWEST = 2_000  # bytes a second; below it a photograph would take minutes, and sixteen of them would stop the queue
_CHUNK = 1 << 18
_LARGE = 16 << 20  # bytes from which a file has a progress line
_DIFFERS = "its sha256 is not the one that was recorded with it"

T = TypeVar("T")


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


class RemoteSource(Source):
    """A place that is reached over a network.

    Args:
        uri: the location.
        patience: seconds without progress after which the place is down.
    """

    def __init__(self, uri: str, patience: float = retrying.LIMIT) -> None:
        super().__init__(uri)
        self._patience = retrying.Patience(uri, patience)

    @abc.abstractmethod
    def _spoken(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the place refuses into reasons and sentences."""

    def _ask(self, question: Callable[[], T], *, one_of_many: bool = False) -> T:
        """Return the answer to a question, asked again while the place is busy."""

        def attempt() -> T:
            with self._spoken():
                return question()

        return self._patience.call(attempt, one_of_many=one_of_many)


class StreamedSource(RemoteSource):
    """A place whose files come as streams that begin where they are asked to."""

    @abc.abstractmethod
    def _path(self, name: str | None) -> str:
        """Return where a file under the location lies, or the one that the location itself is.

        Raises:
            Unavailable: the name points outside.
            InputError: the location is no file.
        """

    @abc.abstractmethod
    def _part(self, path: str, start: int, identity: str) -> contextlib.AbstractContextManager[Part]:
        """Ask for a file from a position on, given the identity of the bytes before it.

        A server that holds another file by now, or knows no ranges, answers with the whole of it.
        """

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        return self._bytes(self._path(name), max_bytes)

    def _bytes(self, path: str, max_bytes: int) -> bytes:
        with io.BytesIO() as sink:
            identity, meter = _Identity(), Meter(self._patience)
            attempt = functools.partial(self._attempt, path, sink, identity, max_bytes, meter)
            self._patience.call(attempt, one_of_many=True)
            content = sink.getvalue()
        if identity.sha256 and files.sha256_bytes(content) != identity.sha256:
            raise Unavailable(_DIFFERS)
        return content

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Write one file, see `Source.fetch`; what has arrived stays in `NAME.part` for the next call or process."""
        path = self._path(name)
        part, record = part_of(destination), destination.with_name(f"{destination.name}.part.json")
        identity, shown = _Identity(record), PurePosixPath(path).name
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            if not identity.value:
                part.unlink(missing_ok=True)
            with (
                part.open("r+b" if part.is_file() else "w+b") as sink,
                Meter(self._patience, "download", shown) as meter,
            ):
                sink.seek(0, io.SEEK_END)
                try:
                    self._patience.call(lambda: self._attempt(path, sink, identity, max_bytes, meter))
                    sink.flush()
                    if identity.sha256 and files.sha256_file(part) != identity.sha256:
                        raise Unavailable(_DIFFERS)
                except Unavailable as error:
                    if not isinstance(error, Unreachable):
                        part.unlink(missing_ok=True)
                        record.unlink(missing_ok=True)
                    raise
            with files.atomic_path(destination) as temporary:
                part.replace(temporary)
            record.unlink(missing_ok=True)
        except OSError as error:
            raise files.unwritable(destination, error) from error

    def digest(self, name: str) -> str:
        """Return the sha256 of a file's bytes, read to their end and kept nowhere.

        Raises:
            Unavailable: it cannot be had.
        """
        path = self._path(name)
        with Meter(self._patience, "read back", PurePosixPath(path).name) as meter:

            def attempt() -> str:
                digest = hashlib.sha256()
                with meter.counting(), self._part(path, 0, "") as part:
                    meter.begin(0, part.total)
                    for piece in _paced(part.stream, meter):
                        digest.update(piece)
                    meter.check_whole(part.total)
                return digest.hexdigest()

            return self._patience.call(attempt)

    def _attempt(self, path: str, sink: BinaryIO, identity: _Identity, max_bytes: int | None, meter: Meter) -> None:
        """Write what is lacking of a file behind what has arrived of it."""
        # The last byte is asked for again: a range that begins at the end of a complete file would be refused.
        held = max(sink.tell() - 1, 0) if identity.value else 0
        with meter.counting(), self._part(path, held, identity.value if held else "") as part:
            if part.start not in (0, held):
                raise Unavailable("the server answers with another part of the file")
            sink.seek(part.start)
            sink.truncate()
            sink.flush()
            meter.begin(part.start, part.total)
            identity.set(part.identity)
            identity.sha256 = part.sha256
            check_size(part.total or 0, max_bytes)
            for piece in _paced(part.stream, meter):
                sink.write(piece)
                check_size(meter.position, max_bytes)
            meter.check_whole(part.total)


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


class _Slow(retrying.Transient):
    """The connection trickles: what it gives is no progress."""


class Meter:
    """How far a file has got over all attempts: progress is what no attempt had before.

    Args:
        patience: of the place; told of progress.
        what: what a person reads of a large file; "" for nothing.
        name: of the file.
    """

    def __init__(self, patience: retrying.Patience, what: str = "", name: str = "") -> None:
        self._patience, self._what, self._name = patience, what, name
        self._shown: Progress | None = None
        self._furthest = 0
        self.position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.close()

    def begin(self, position: int, total: int | None) -> None:
        """Note where an attempt begins."""
        self.position = position
        self._furthest = max(self._furthest, position)
        if self._what and self._shown is None and (total is None or total >= _LARGE):
            self._shown = Progress(self._what, total, BYTES, done=position, name=self._name)

    def add(self, size: int) -> None:
        """Count what has arrived."""
        self.position += size
        if self._shown is not None:
            self._shown.reach(self.position)

    def keep(self) -> None:
        """Note that what has arrived was no trickle."""
        if self.position > self._furthest:
            self._furthest = self.position
            self._patience.progressed()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Note what an attempt that broke had got."""
        try:
            yield
        except _Slow:
            raise
        except retrying.Transient:
            self.keep()
            raise

    def check_whole(self, total: int | None) -> None:
        """Refuse an end before the end."""
        if total is not None and self.position != total:
            raise retrying.Transient("the connection broke")


def _paced(stream: Stream, meter: Meter) -> Iterator[bytes]:
    since, arrived = time.monotonic(), 0
    while piece := stream.read1(_CHUNK):
        meter.add(len(piece))
        yield piece
        arrived += len(piece)
        now = time.monotonic()
        if now - since >= PATIENCE:
            if arrived < SLOWEST * (now - since):
                raise _Slow(f"slower than {SLOWEST:,} bytes a second")
            meter.keep()
            since, arrived = now, 0
