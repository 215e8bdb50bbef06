"""Artifact folders in an object store: each object sent once, a folder fetched whole.

Below one prefix lie a folder's files under their own names and, written last, `contents.json` with the size and the
sha256 of each: a prefix with it is complete, one without is on its way. An interrupted delivery continues, and so does
an interrupted fetch; either way every byte is accounted for by its sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

if TYPE_CHECKING:
    from multimodal_gemma.data.sources.s3 import S3Source, Stored

CONTENTS = "contents.json"  # written last: the prefix is complete
_WORKERS = 8
_MAX_CONTENTS = 64 << 20  # bytes of a list of files

Contents = dict[str, dict[str, Any]]


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
    from multimodal_gemma.data.sources.base import Unavailable
    from multimodal_gemma.data.sources.s3 import S3Source

    store = S3Source(uri)
    known = manifest.read(folder).files
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    names = [name for name in found if not without(name)]
    try:
        there = store.stored_all()
        if CONTENTS in there and _same(_contents(store), there, names, known):
            return 0
        with Progress("deliver", len(names), "file") as progress, ThreadPoolExecutor(_WORKERS) as pool:
            sent = {}
            for name, outcome in zip(
                names, pool.map(lambda name: send(store, there.get(name), name, folder / name), names), strict=True
            ):
                sent[name] = outcome
                progress.advance()
        arrived = store.stored_all()
        for name in names:
            if name not in arrived or arrived[name].size != size(folder / name):
                raise InputError(f"deliver: {name} has not arrived whole in {uri}. Run again.")
        contents = {name: {"sha256": sent[name][0], "bytes": size(folder / name)} for name in names}
        written = json.dumps(contents, indent=1, sort_keys=True).encode()
        store.put(CONTENTS, written, hashlib.sha256(written).hexdigest())
    except Unavailable as error:
        raise InputError(
            f"deliver: {uri} cannot be written ({error}). Check AWS_ENDPOINT_URL and the keys, and run again; what has "
            "arrived is kept."
        ) from None
    return 1 + sum(new for _, new in sent.values())


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
    from multimodal_gemma.data.sources.base import Unavailable
    from multimodal_gemma.data.sources.s3 import S3Source

    store = S3Source(uri)
    try:
        if not store.exists(CONTENTS):
            return False
        contents = _contents(store)
        names = sorted(name for name in contents if name != manifest.NAME)
        with Progress("fetch", len(contents), "file") as progress, ThreadPoolExecutor(_WORKERS) as pool:
            for _ in pool.map(lambda name: _fetch_one(store, name, contents[name], folder), names):
                progress.advance()
            if manifest.NAME in contents:
                _fetch_one(store, manifest.NAME, contents[manifest.NAME], folder)
    except Unavailable as error:
        raise InputError(
            f"deliver: {uri} cannot be read ({error}). Check AWS_ENDPOINT_URL and run again; what has arrived is kept."
        ) from None
    return True


def send(store: S3Source, there: Stored | None, name: str, content: bytes | Path) -> tuple[str, bool]:
    """Write an object unless it is there already; return its sha256, and whether it was written.

    Args:
        store: the prefix.
        there: what a listing tells of the object; None if it is absent.
        name: of the object.
        content: its bytes, or the file that holds them.
    """
    from multimodal_gemma.data.sources.s3 import SINGLE_PART

    digest = files.sha256_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    if there is not None and there.size == size(content):
        if there.size <= SINGLE_PART:
            whole = content.read_bytes() if isinstance(content, Path) else content
            same = there.etag.strip('"') == hashlib.md5(whole).hexdigest()
        else:
            found = store.stored(name)
            same = found is not None and found.sha256 == digest
        if same:
            return digest, False
    store.put(name, content, digest)
    return digest, True


def size(content: bytes | Path) -> int:
    """Return the bytes of an object to be."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _contents(store: S3Source) -> Contents:
    return dict(json.loads(store.read(CONTENTS, _MAX_CONTENTS)))


def _same(contents: Contents, there: dict[str, Stored], names: list[str], known: Contents) -> bool:
    """Whether what a complete prefix holds is this folder, judged by sizes and by the digests in its manifest."""
    whole = all(name in there and there[name].size == entry["bytes"] for name, entry in contents.items())
    same = all(contents.get(name, {}).get("sha256") == entry["sha256"] for name, entry in known.items())
    return whole and same and set(names) <= contents.keys()


def _fetch_one(store: S3Source, name: str, entry: dict[str, Any], folder: Path) -> None:
    path = folder / name
    if path.is_file() and path.stat().st_size == entry["bytes"] and files.sha256_file(path) == entry["sha256"]:
        return
    store.fetch(name, path, entry["bytes"])
    if files.sha256_file(path) != entry["sha256"]:
        path.unlink()
        raise InputError(f"deliver: {name} of {store.uri} differs from the sha256 it was sent with. Run again.")
