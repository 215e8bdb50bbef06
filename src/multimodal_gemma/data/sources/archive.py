"""Files inside a zip or tar archive, read by name and never unpacked.

Published image sets come as one archive of thousands of files. Only the members that are asked for are read. An archive
that holds a link, or a member whose name points outside, was not made for reading and is refused as a whole.
"""

from __future__ import annotations

import functools
import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Reader, Unavailable, check_size, safe_name
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


def unpack(path: Path, uri: str, plain: Path, max_bytes: int) -> None:
    """Make a plain tar archive of a compressed one, because there is no reading by name in a compressed stream.

    Args:
        path: the archive on this machine.
        uri: where it came from, for sentences.
        plain: appears whole or not at all.
        max_bytes: what it may grow to.

    Raises:
        InputError: it is no whole gzip file, or grows beyond the limit.
    """
    shown = Progress("unpack", path.stat().st_size, BYTES, name=uri.rpartition("/")[2])
    with files.atomic_path(plain) as temporary, path.open("rb") as raw, temporary.open("wb") as stream, shown:
        try:
            written = 0
            with gzip.open(raw) as packed:
                while piece := packed.read(1 << 20):
                    written += stream.write(piece)
                    shown.reach(raw.tell())
                    if written > max_bytes:
                        raise InputError(
                            f"download: {uri} unpacks to more than {max_bytes:,} bytes. Allow more with "
                            "data.max_file_bytes if you trust it."
                        )
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise _not_whole(path, uri, "gzip file", error) from None


def _not_whole(path: Path, uri: str, kind: str, error: Exception | str) -> InputError:
    """Return the sentence for a file that is no archive."""
    if path.is_file():
        with path.open("rb") as stream:
            start = stream.read(200).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html")):
            return InputError(f"download: {uri} is a web page, not an archive. Check the address.")
    return InputError(f"download: {uri} is no whole {kind} ({error}). Fetch it again.")


class Archive(Reader):
    """The members of a zip archive or a plain tar archive.

    A name is found as the member's path or as its end, so that `000000033471.jpg` finds `train2017/000000033471.jpg`.

    Args:
        path: the archive on this machine.
        uri: where it came from; its end tells the kind.

    Raises:
        InputError: it is no whole archive, or holds a link or a name that points outside.
    """

    def __init__(self, path: Path, uri: str) -> None:
        super().__init__(uri)
        self._members: dict[str, tuple[int, Callable[[], bytes]]] = {}  # size, and what reads it
        self._by_ending: dict[str, list[str]] = defaultdict(list)  # last part of the path: members
        is_zip = uri.lower().endswith(".zip")
        try:
            (self._open_zip if is_zip else self._open_tar)(path)
        except _BROKEN as error:
            raise _not_whole(path, uri, "zip archive" if is_zip else "tar archive", error) from None

    def _open_zip(self, path: Path) -> None:
        archive = zipfile.ZipFile(path)

        def content(member: zipfile.ZipInfo) -> bytes:
            with archive.open(member) as stream:
                return stream.read(member.file_size + 1)

        for member in archive.infolist():
            link = stat.S_ISLNK(member.external_attr >> 16)
            reading = functools.partial(content, member)
            self._add(member.orig_filename, member.file_size, reading, link=link, folder=member.is_dir())

    def _open_tar(self, path: Path) -> None:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
        if members and members[-1].offset_data + members[-1].size > path.stat().st_size:
            raise tarfile.TarError("its end is absent")
        self._file = path.open("rb")  # read by position: threads that read at once share no offset
        for member in members:
            plain = (member.isreg() and member.sparse is None) or member.isdir()
            reading = functools.partial(os.pread, self._file.fileno(), member.size, member.offset_data)
            self._add(member.name, member.size, reading, link=not plain, folder=member.isdir())

    def _add(self, stored: str, size: int, reading: Callable[[], bytes], *, link: bool, folder: bool) -> None:
        if link:
            raise InputError(f"download: {self.uri} holds the link {stored!r}. Archive it without links.")
        try:
            name = safe_name(stored)
        except Unavailable:
            raise InputError(
                f"download: {self.uri} holds {stored!r}, a name that points outside. Archive it again."
            ) from None
        if not folder:
            self._members[name] = size, reading
            self._by_ending[name.rpartition("/")[2]].append(name)

    def read(self, name: str, max_bytes: int | None) -> bytes:
        """Return the bytes of one member, see `Reader.read`; without a limit, as many as the archive states."""
        size, reading = self._members[self._find(name)]
        check_size(size, max_bytes)
        try:
            content = reading()
        except _BROKEN as error:
            raise Unavailable(f"its member of the archive is broken ({error})") from None
        check_size(len(content), size)
        return content

    def fetch(self, name: str, destination: Path) -> None:
        """Write one member, whole or not at all.

        Raises:
            Unavailable: it is not there, or broken.
        """
        content = self.read(name, None)
        with files.atomic_path(destination) as temporary:
            temporary.write_bytes(content)

    def exists(self, name: str) -> bool:
        """Return whether the archive has that member."""
        try:
            return bool(self._find(name))
        except Unavailable:
            return False

    def _find(self, name: str) -> str:
        name = safe_name(name)
        if name in self._members:
            return name
        found = [path for path in self._by_ending.get(name.rpartition("/")[2], []) if path.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        raise Unavailable(f"the archive holds {len(found)} members of that name" if found else "not in the archive")
