"""What every source can do."""

from __future__ import annotations

import abc
from pathlib import Path, PurePosixPath

from multimodal_gemma import files


class Unavailable(Exception):
    """One named file cannot be had; the message is the reason, short enough for a list of thousands."""


class Unreachable(Unavailable):
    """The place itself does not answer, so that asking it for the next file is likely to fail too."""


class Reader(abc.ABC):
    """Files that are read by name; its methods may be called from several threads.

    Attributes:
        uri: the location as configured.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file under the location.

        Raises:
            Unavailable: it is not there, larger than `max_bytes`, or cannot be had.
        """


class Source(Reader):
    """A location that holds files by name, or is one file."""

    @abc.abstractmethod
    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Write one file under the location, or the file that the location itself is (None), to `destination`.

        Args:
            name: the file.
            destination: appears whole or not at all.
            max_bytes: a larger file is refused; None takes any.

        Raises:
            Unavailable: it is not there, larger than `max_bytes`, or cannot be had.
            InputError: `destination` cannot be written.
        """

    @abc.abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether a file lies under the location.

        Raises:
            Unreachable: the place does not answer.
        """

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the paths of the files under the location, relative to it, ascending.

        Raises:
            InputError: such a place cannot be listed.
        """

    @abc.abstractmethod
    def fingerprint(self, *names: str) -> str:
        """Return a cheap identity of what would be fetched: another value means that it may have changed.

        Args:
            names: the files that matter; none: the location as a whole.

        Raises:
            Unavailable: the place cannot be asked, or the file is not there.
            InputError: the place refuses.
        """

    def stamp(self, name: str) -> str:
        """Return what tells a file from a later one of the same name (an ETag, size and time); "" if nothing does.

        Only called for many names of one place, so that a listing answers for all of them.

        Raises:
            Unavailable: the place cannot be asked.
            InputError: the place refuses.
        """
        return ""

    def facts(self) -> dict[str, str]:
        """Return what the place states of its files by name, for people: sizes, ETags, sha256; {} for nothing.

        Raises:
            Unavailable: the place cannot be asked.
            InputError: the place refuses.
        """
        return {}

    def describe(self) -> dict[str, str]:
        """Return where this is, for the record: the URI with its resolved revision; never a path of this machine."""
        return {"uri": self.uri}


def safe_name(name: str) -> str:
    """Return a file name that stays below its location.

    Raises:
        Unavailable: the name is absolute, climbs out by "..", or is no plain path.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or any(ord(letter) < 32 for letter in name):
        raise Unavailable("its name points outside the location")
    return str(path)


def check_size(size: int, max_bytes: int | None) -> None:
    """Refuse a file that is too large.

    Raises:
        Unavailable: `size` is above `max_bytes`.
    """
    if max_bytes is not None and size > max_bytes:
        raise Unavailable(f"larger than {max_bytes:,} bytes")


def place(path: Path, destination: Path) -> None:
    """Put a file of this machine at `destination` without copying its bytes where a hard link works.

    Only for files that nobody edits in place: weights and content-addressed caches.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(destination.parent, error) from error
    try:
        destination.hardlink_to(path.resolve())
    except OSError:  # another file system, or one without links
        copy(path, destination)


def copy(path: Path, destination: Path) -> None:
    """Copy a file, whole or not at all."""
    with files.atomic_path(destination) as temporary, temporary.open("wb") as stream:
        for piece in files.pieces(path, "copy"):
            stream.write(piece)
