"""Finished work that outlives the machine: files in a bucket, by the digest of all they were made from.

A pod's disk goes with the pod. What a stage has finished (a raw shard, a slice of pixels) is kept below
`data.work_uri` under a key that says what went into it, so that the next pod, or the next run in another image, takes
it from there instead of making it again. A key never means two contents: whoever makes one puts the formats' numbers
and the libraries' versions into it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.data.sources.gcs import GcsSource
    from multimodal_gemma.data.sources.s3 import S3Source

_PATIENCE = 60.0  # seconds without an answer after which work goes on without the store
_SUFFIX = ".sha256"  # the object beside a file, written after it


def open_store(uri: str, what: str) -> WorkStore | None:
    """Return the store of one kind of work.

    Args:
        uri: data.work_uri, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`; "" for none.
        what: the kind, a folder below it: "shards", "slices".

    Returns:
        None without a location.

    Raises:
        InputError: it is no such location, or the store's credentials are incomplete.
    """
    if not uri:
        return None
    place = f"{uri.rstrip('/')}/{what}"
    if uri.startswith("gs://"):
        from multimodal_gemma.data.sources.gcs import GcsSource

        return WorkStore(GcsSource(place, _PATIENCE))
    if uri.startswith("s3://"):
        from multimodal_gemma.data.sources.s3 import S3Source

        return WorkStore(S3Source(place, _PATIENCE))
    raise InputError(f"config: data.work_uri={uri} is no bucket. Write s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")


class WorkStore:
    """Files by digest. A store that does not answer is said once, and work goes on without it.

    Args:
        source: the place.
    """

    def __init__(self, source: S3Source | GcsSource) -> None:
        self._source = source
        self._silent = False
        self._lock = threading.Lock()

    def get(self, digest: str, path: Path) -> bool:
        """Fetch a file to `path`, whole or not at all.

        Returns:
            False where the store does not have it, does not answer, or has other bytes than were put there.
        """
        from multimodal_gemma.data.sources.base import Unavailable, Unreachable

        if self._silent:
            return False
        try:
            wanted = self._source.read(f"{digest}{_SUFFIX}", 64).decode("ascii", "replace")
            self._source.fetch(digest, path)
        except Unreachable as error:
            self._warn(error)
            return False
        except Unavailable:
            return False
        if files.sha256_file(path) == wanted:
            return True
        path.unlink()
        return False

    def put(self, digest: str, path: Path) -> None:
        """Keep a file, whole or not at all."""
        from multimodal_gemma.data.sources.base import Unavailable

        if self._silent:
            return
        known = files.sha256_file(path)
        try:
            self._source.put(digest, path, known)
            self._source.put(f"{digest}{_SUFFIX}", known.encode(), files.sha256_bytes(known.encode()))
        except Unavailable as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        with self._lock:
            if not self._silent:
                self._silent = True
                logs.get("work").warning(f"{self._source.uri} does not answer ({error}): going on without it")
