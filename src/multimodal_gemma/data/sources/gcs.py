"""Objects of Google Cloud Storage: `gs://bucket/prefix`.

Credentials are the cloud's own chain: GOOGLE_APPLICATION_CREDENTIALS, else the service account that the pod or machine
runs as. STORAGE_EMULATOR_HOST names a store that speaks like it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying, transfer
from multimodal_gemma.data.sources.base import Unavailable, safe_name
from multimodal_gemma.errors import InputError

_RETRY_SECONDS = 20.0  # of the library's own retries, which would go on for 15 minutes
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "Could not create a OAuth2 access token", "credentials")


class GcsSource(transfer.RemoteSource):
    """A prefix, or one object, of a bucket.

    Args:
        uri: `gs://bucket/prefix`.
        patience: seconds without progress after which the store is down.

    Raises:
        InputError: the location names no bucket.
    """

    def __init__(self, uri: str, patience: float = retrying.LIMIT) -> None:
        super().__init__(uri, patience)
        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        if not bucket:
            raise InputError(f"download: {uri} names no bucket. Write gs://BUCKET/PREFIX.")
        self._root = f"{bucket}/{prefix.strip('/')}".rstrip("/")

    def exists(self, name: str) -> bool:
        """Return whether the store has that object."""
        return bool(self._stamp_of(self._path(name)))

    def names(self) -> list[str]:
        """Return every object below the prefix."""
        return sorted(self._listing)

    def stamp(self, name: str) -> str:
        """Return an object's size and time of writing; the listing has no ETag."""
        return self._listing.get(name, "")

    def put(self, name: str, content: bytes | Path, sha256: str) -> None:
        """Write an object.

        Args:
            name: of the object, below the prefix.
            content: its bytes, or the file that holds them.
            sha256: of them; kept as the object's metadata.

        Raises:
            Unavailable: it cannot be written.
        """

        def write(stream: Any, _: int) -> None:
            with self._files.open_output_stream(self._path(name), metadata={"sha256": sha256}) as sink:
                while piece := stream.read(1 << 22):
                    sink.write(piece)

        self._send(name, content, write)

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the objects' stamps."""
        if names:
            return files.digest_of([[name, self._stamp_of(self._path(name))] for name in names])
        single = "" if self.uri.endswith("/") or "/" not in self._root else self._stamp_of(self._root)
        return files.digest_of([self.uri, single or sorted(self._listing.items())])

    @functools.cached_property
    def _files(self) -> Any:
        from datetime import timedelta

        from pyarrow.fs import GcsFileSystem

        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        if not emulator:
            return GcsFileSystem(retry_time_limit=timedelta(seconds=_RETRY_SECONDS))
        scheme, _, host = emulator.rpartition("://")
        limit = timedelta(seconds=_RETRY_SECONDS)
        return GcsFileSystem(anonymous=True, scheme=scheme or "http", endpoint_override=host, retry_time_limit=limit)

    @functools.cached_property
    def _listing(self) -> dict[str, str]:
        from pyarrow.fs import FileSelector

        wanted = FileSelector(self._root, recursive=True, allow_not_found=True)
        try:
            found = self._ask(lambda: self._files.get_file_info(wanted))
        except Unavailable as error:
            raise InputError(f"download: {self.uri} cannot be listed ({error}). Check the location.") from None
        return {info.path.removeprefix(f"{self._root}/"): _stamp(info) for info in found if info.is_file}

    def _path(self, name: str | None) -> str:
        return self._root if name is None else f"{self._root}/{safe_name(name)}"

    def _stamp_of(self, path: str) -> str:
        info = self._ask(lambda: self._files.get_file_info(path))
        return _stamp(info) if info.is_file else ""

    @contextlib.contextmanager
    def _part(self, path: str, start: int, identity: str) -> Iterator[transfer.Part]:
        """Yield an object's bytes from `start` on, from its beginning if it is another one by now."""
        with self._spoken():
            info = self._files.get_file_info(path)
            if not info.is_file:
                raise Unavailable("no such object")
            now = _stamp(info)
            begin = start if now == identity else 0
            with self._files.open_input_file(path) as stream:
                stream.seek(begin)
                yield transfer.Part(stream, begin, info.size, now)

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Unavailable("no such object") from None
        except OSError as error:
            said = str(error)
            if any(word in said for word in _REFUSED):
                raise InputError(
                    f"download: the store refuses {self.uri} ({said.splitlines()[0][:160]}). Check "
                    "GOOGLE_APPLICATION_CREDENTIALS, or the service account that this runs as and what it may do."
                ) from None
            raise retrying.Transient("the store does not answer") from None


def _stamp(info: Any) -> str:
    return f"{info.size}-{info.mtime_ns}"
