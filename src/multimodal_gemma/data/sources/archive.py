"""Files inside a zip or tar archive, read by name and never unpacked.

Published image sets come as one archive of thousands of files. Only the members that are asked for are read. An archive
that holds a link, or a member whose name points outside, was not made for reading and is refused as a whole.
"""

from __future__ import annotations

import abc
import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Generic, TypeVar

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Source, Unavailable, check_size, safe_name
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import BYTES, Progress

COMPRESSED = (".tar.gz", ".tgz")
SUFFIXES = (".zip", ".tar", *COMPRESSED)
_BROKEN = (  # what zipfile, tarfile and gzip raise
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
Member = TypeVar("Member")


def open_archive(path: Path, origin: Source, max_bytes: int) -> ArchiveSource:
    """Return the source of the files in an archive.

    Args:
        path: the archive on this machine. Of a compressed tar archive a plain one is made beside it, because there is
            no reading by name in a compressed stream.
        origin: where it came from; its address tells the kind.
        max_bytes: what a compressed one may grow to.

    Raises:
        InputError: it is no whole archive, grows beyond the limit, or holds a link or a name that points outside.
    """
    if path.is_file():
        with path.open("rb") as stream:
            start = stream.read(200).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html")):
            raise InputError(f"download: {origin.uri} is a web page, not an archive. Check the address.")
    name = origin.uri.lower()
    if name.endswith(".zip"):
        return ZipSource(path, origin)
    if not name.endswith(COMPRESSED):
        return TarSource(path, origin)
    plain = unpacked(path)
    if plain.is_file():
        return TarSource(plain, origin)
    with files.atomic_path(plain) as temporary:
        try:
            shown = Progress("unpack", path.stat().st_size, BYTES, name=origin.uri.rpartition("/")[2])
            with path.open("rb") as raw, gzip.open(raw) as packed, temporary.open("wb") as stream, shown:
                written = 0
                while piece := packed.read(1 << 20):
                    written += stream.write(piece)
                    shown.reach(raw.tell())
                    if written > max_bytes:
                        raise InputError(
                            f"download: {origin.uri} unpacks to more than {max_bytes:,} bytes. Allow more with "
                            "data.max_file_bytes if you trust it."
                        )
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"download: {origin.uri} is no whole gzip file ({error}). Fetch it again.") from None
    path.unlink()
    return TarSource(plain, origin)


def unpacked(path: Path) -> Path:
    """Return where the plain form of a compressed tar archive lies."""
    return path.with_name(f"{path.name}.plain")


class ArchiveSource(Source, Generic[Member]):
    """The members of an archive.

    A name is found as the member's path or as its end, so that `000000033471.jpg` finds `train2017/000000033471.jpg`.

    Args:
        origin: where it came from.
    """

    def __init__(self, origin: Source) -> None:
        super().__init__(origin.uri)
        self._origin = origin
        self._members: dict[str, Member] = {}
        self._by_ending: dict[str, list[str]] = defaultdict(list)  # last part of the path: members

    def _add(self, stored: str, member: Member, *, link: bool, folder: bool) -> None:
        if link:
            raise InputError(f"download: {self.uri} holds the link {stored!r}. Archive it without links.")
        try:
            name = safe_name(stored)
        except Unavailable:
            raise InputError(
                f"download: {self.uri} holds {stored!r}, a name that points outside. Archive it again."
            ) from None
        if not folder:
            self._members[name] = member
            self._by_ending[name.rpartition("/")[2]].append(name)

    @abc.abstractmethod
    def _size(self, member: Member) -> int: ...

    @abc.abstractmethod
    def _content(self, member: Member, max_bytes: int) -> bytes:
        """Return the bytes of a member, at most `max_bytes` of them."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one member, see `Source.read`."""
        member = self._members[self._find(name)]
        check_size(self._size(member), max_bytes)
        try:
            content = self._content(member, max_bytes + 1)
        except _BROKEN as error:
            raise Unavailable(f"its member of the archive is broken ({error})") from None
        check_size(len(content), max_bytes)
        return content

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Write one member, see `Source.fetch`."""
        if name is None:
            raise InputError(f"download: {self.uri} is an archive, not one file. Name a file in it.")
        size = self._size(self._members[self._find(name)])
        check_size(size, max_bytes)
        content = self.read(name, size)
        with files.atomic_path(destination) as temporary:
            temporary.write_bytes(content)

    def exists(self, name: str) -> bool:
        """Return whether the archive has that member."""
        try:
            return bool(self._find(name))
        except Unavailable:
            return False

    def names(self) -> list[str]:
        """Return the paths of all members."""
        return sorted(self._members)

    def fingerprint(self, *names: str) -> str:
        """Return the fingerprint of where the archive came from."""
        return self._origin.fingerprint()

    def describe(self) -> dict[str, str]:
        """Return where the archive came from."""
        return self._origin.describe()

    def _find(self, name: str) -> str:
        name = safe_name(name)
        if name in self._members:
            return name
        found = [path for path in self._by_ending.get(name.rpartition("/")[2], []) if path.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        raise Unavailable(f"the archive holds {len(found)} members of that name" if found else "not in the archive")


class ZipSource(ArchiveSource[zipfile.ZipInfo]):
    """The members of a zip archive."""

    def __init__(self, path: Path, origin: Source) -> None:
        super().__init__(origin)
        try:
            self._archive = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise InputError(f"download: {origin.uri} is no whole zip archive ({error}). Fetch it again.") from None
        for member in self._archive.infolist():
            link = stat.S_ISLNK(member.external_attr >> 16)
            self._add(member.orig_filename, member, link=link, folder=member.is_dir())

    def _size(self, member: zipfile.ZipInfo) -> int:
        return member.file_size

    def _content(self, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
        with self._archive.open(member) as stream:
            return stream.read(max_bytes)


class TarSource(ArchiveSource[tarfile.TarInfo]):
    """The members of a plain tar archive."""

    def __init__(self, path: Path, origin: Source) -> None:
        super().__init__(origin)
        try:
            self._archive = tarfile.open(path, "r:")  # noqa: SIM115 - its file is read as long as the source lives
            members = self._archive.getmembers()
        except _BROKEN as error:
            raise InputError(f"download: {origin.uri} is no whole tar archive ({error}). Fetch it again.") from None
        if members and members[-1].offset_data + members[-1].size > path.stat().st_size:
            raise InputError(f"download: {origin.uri} is no whole tar archive (its end is absent). Fetch it again.")
        for member in members:
            plain = (member.isreg() and member.sparse is None) or member.isdir()
            self._add(member.name, member, link=not plain, folder=member.isdir())
        self._file = os.open(path, os.O_RDONLY)

    def _size(self, member: tarfile.TarInfo) -> int:
        return member.size

    def _content(self, member: tarfile.TarInfo, max_bytes: int) -> bytes:
        # By position: threads that read at once share no offset.
        return os.pread(self._file, min(member.size, max_bytes), member.offset_data)
