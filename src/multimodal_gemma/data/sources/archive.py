"""Files inside a zip archive, read by name and never unpacked.

Published image sets come as one archive of thousands of files. Only the members that are asked for are read. An archive
that holds a link, or a member whose name points outside, was not made for reading and is refused as a whole.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Source, Unavailable, safe_name
from multimodal_gemma.errors import InputError

SUFFIX = ".zip"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)  # what zipfile raises


class ArchiveSource(Source):
    """The members of a zip archive.

    A name is found as the member's path or as its end, so that `000000033471.jpg` finds `train2017/000000033471.jpg`.

    Args:
        path: the archive on this machine.
        origin: where it came from.

    Raises:
        InputError: it is no whole zip archive, or holds a link or a name that points outside.
    """

    def __init__(self, path: Path, origin: Source) -> None:
        super().__init__(origin.uri)
        self._origin = origin
        try:
            self._archive = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise InputError(f"download: {origin.uri} is no whole zip archive ({error}). Fetch it again.") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._by_ending: dict[str, list[str]] = defaultdict(list)  # last part of the path: members
        for member in self._archive.infolist():
            self._add(member)

    def _add(self, member: zipfile.ZipInfo) -> None:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"download: {self.uri} holds the link {member.filename!r}. Archive it without links.")
        try:
            name = safe_name(member.orig_filename)
        except Unavailable:
            raise InputError(
                f"download: {self.uri} holds {member.orig_filename!r}, a name that points outside. Archive it again."
            ) from None
        if not member.is_dir():
            self._members[name] = member
            self._by_ending[name.rpartition("/")[2]].append(name)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one member, see `Source.read`."""
        member = self._members[self._find(name)]
        if member.file_size > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        try:
            with self._archive.open(member) as stream:
                content = stream.read(max_bytes + 1)
        except _BROKEN as error:
            raise Unavailable(f"its member of the archive is broken ({error})") from None
        if len(content) > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        return content

    def fetch(self, name: str | None, destination: Path) -> None:
        """Write one member, see `Source.fetch`."""
        if name is None:
            raise InputError(f"download: {self.uri} is an archive, not one file. Name a file in it.")
        content = self.read(name, self._members[self._find(name)].file_size)
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
