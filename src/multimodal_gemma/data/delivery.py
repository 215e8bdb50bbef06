"""What is finished, in a bucket: artifact folders sent once and fetched whole, and pieces of work by their digest.

Below one prefix lie a folder's files under their own names and, written last, `contents.json` with the size and the
sha256 of each: a prefix with it is complete, one without is on its way. An interrupted delivery continues, and so does
an interrupted fetch; either way every byte is accounted for by its sha256.

A pod's disk goes with the pod. What a stage has finished (a raw shard, a slice of pixels) is kept below
`data.work_uri` under a key that says what went into it, so that the next pod, or the next run in another image, takes
it from there instead of making it again. A key never means two contents: whoever makes one puts the formats' numbers
and the libraries' versions into it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.data.sources.base import Unavailable, Unreachable
from multimodal_gemma.data.sources.buckets import SINGLE_PART, BucketSource, GcsSource, S3Source, Stored
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

CONTENTS = "contents.json"  # written last: the prefix is complete
WORKERS = 8  # transfers at a time
_MAX_CONTENTS = 64 << 20  # bytes of a list of files
_PATIENCE = 60.0  # seconds without an answer after which work goes on without the store
_SUFFIX = ".sha256"  # the object beside a piece of work, written after it

Contents = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sent:
    """A file that lies in a bucket.

    Attributes:
        bytes: its size.
        sha256: of its bytes.
        md5: the ETag of an object in one piece; "" for one in parts, whose ETag is no digest of its bytes.
        new: whether it was written now.
    """

    bytes: int
    sha256: str
    md5: str
    new: bool = False

    def is_whole(self, store: S3Source, name: str, found: Stored | None) -> bool:
        """Return whether an object, as a listing tells of it, has these bytes."""
        if found is None or found.size != self.bytes:
            return False
        if self.md5:
            return found.etag.strip('"') == self.md5
        told = store.stored(name)
        return told is not None and told.sha256 == self.sha256


def send(store: S3Source, paths: Mapping[str, Path], there: Mapping[str, Stored], what: str) -> dict[str, Sent]:
    """Write files, by their names in the store, that are not there with the same bytes.

    Args:
        store: the prefix.
        paths: the files.
        there: what lies below the prefix.
        what: the work, for its line of progress.

    Raises:
        Unavailable: the store cannot be written.
    """

    def one(name: str) -> Sent:
        path = paths[name]
        size = path.stat().st_size
        md5 = hashlib.md5(path.read_bytes()).hexdigest() if size <= SINGLE_PART else ""
        sent = Sent(size, files.sha256_file(path), md5)
        if sent.is_whole(store, name, there.get(name)):
            return sent
        store.put(name, path, sent.sha256)
        return dataclasses.replace(sent, new=True)

    with Progress(what, len(paths), "file") as progress, ThreadPoolExecutor(WORKERS) as pool:
        found = {}
        for name, sent in zip(paths, pool.map(one, paths), strict=True):
            found[name] = sent
            progress.advance()
    return found


def put_json(store: S3Source, name: str, value: Any) -> None:
    """Write a value as readable JSON with sorted keys."""
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    store.put(name, content, files.sha256_bytes(content))


@contextlib.contextmanager
def reaching(what: str, uri: str) -> Iterator[None]:
    """Turn a store's silence into a sentence."""
    try:
        yield
    except Unavailable as error:
        raise InputError(
            f"{what}: {uri} cannot be reached ({error}). Check AWS_ENDPOINT_URL and the keys, and run again; what has "
            "arrived is kept."
        ) from None


def deliver(folder: Path, uri: str, *, without: Callable[[str], bool] = lambda _: False) -> int:
    """Send a finished artifact folder to a prefix of a bucket.

    Args:
        folder: the artifact.
        uri: `s3://BUCKET/PREFIX` that holds nothing else, e.g. one named by the artifact's digest.
        without: paths, relative to the folder, that stay here.

    Returns:
        How many objects were written; 0 where all were there.

    Raises:
        InputError: the store is at fault, or the folder is no finished artifact.
    """
    store = S3Source(uri)
    known = manifest.read(folder).files
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in found.items() if not without(name)}
    with reaching("deliver", uri):
        there = store.stored_all()
        if CONTENTS in there and _same(_contents(store), there, paths, known):
            return 0
        sent = send(store, paths, there, "deliver")
        arrived = store.stored_all()
        for name, one in sent.items():
            if name not in arrived or arrived[name].size != one.bytes:
                raise InputError(f"deliver: {name} has not arrived whole in {uri}. Run again.")
        put_json(store, CONTENTS, {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in sent.items()})
    return 1 + sum(one.new for one in sent.values())


def fetch(uri: str, folder: Path) -> bool:
    """Fetch a delivered folder whole, what is here already aside; its manifest comes last.

    Args:
        uri: where `deliver` put it.
        folder: gets the files; others that lie there stay.

    Returns:
        False where nothing complete lies at `uri`.

    Raises:
        InputError: the store is at fault, or a file is not what was sent.
    """
    store = S3Source(uri)
    with reaching("deliver", uri):
        if not store.exists(CONTENTS):
            return False
        contents = _contents(store)
        names = sorted(name for name in contents if name != manifest.NAME)
        with Progress("fetch", len(contents), "file") as progress, ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(lambda name: _fetch_one(store, name, contents[name], folder), names):
                progress.advance()
            if manifest.NAME in contents:
                _fetch_one(store, manifest.NAME, contents[manifest.NAME], folder)
    return True


def _contents(store: S3Source) -> Contents:
    return dict(json.loads(store.read(CONTENTS, _MAX_CONTENTS)))


def _same(contents: Contents, there: Mapping[str, Stored], paths: Mapping[str, Path], known: Contents) -> bool:
    """Whether what a complete prefix holds is this folder, judged by sizes and by the digests in its manifest."""
    whole = all(name in there and there[name].size == entry["bytes"] for name, entry in contents.items())
    same = all(contents.get(name, {}).get("sha256") == entry["sha256"] for name, entry in known.items())
    return whole and same and paths.keys() <= contents.keys()


def _fetch_one(store: S3Source, name: str, entry: dict[str, Any], folder: Path) -> None:
    path = folder / name
    if path.is_file() and path.stat().st_size == entry["bytes"] and files.sha256_file(path) == entry["sha256"]:
        return
    store.fetch(name, path, entry["bytes"])
    if files.sha256_file(path) != entry["sha256"]:
        path.unlink()
        raise InputError(f"deliver: {name} of {store.uri} differs from the sha256 it was sent with. Run again.")


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
    bucket: type[BucketSource] = S3Source if uri.startswith("s3://") else GcsSource
    if not uri.startswith(("s3://", "gs://")):
        raise InputError(f"config: data.work_uri={uri} is no bucket. Write s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
    return WorkStore(bucket(f"{uri.rstrip('/')}/{what}", _PATIENCE))


class WorkStore:
    """Pieces of work by digest. A store that does not answer is said once, and work goes on without it.

    Args:
        source: the place.
    """

    def __init__(self, source: BucketSource) -> None:
        self._source = source
        self._silent = False
        self._lock = threading.Lock()

    def get(self, digest: str, path: Path) -> bool:
        """Fetch a file to `path`, whole or not at all.

        Returns:
            False where the store does not have it, does not answer, or has other bytes than were put there.
        """
        if self._silent:
            return False
        try:
            wanted = self._source.read(f"{digest}{_SUFFIX}", 64).decode("ascii", "replace")
            self._source.fetch(digest, path)
        except Unavailable as error:
            if isinstance(error, Unreachable):
                self._warn(error)
            return False
        if files.sha256_file(path) == wanted:
            return True
        path.unlink()
        return False

    def put(self, digest: str, path: Path) -> None:
        """Keep a file, whole or not at all."""
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
