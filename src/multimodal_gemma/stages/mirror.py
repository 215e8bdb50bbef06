"""Mirror: data and base models into an S3 bucket, so that a cluster without internet needs only s3:// locations.

What is mirrored is downloaded first, by the download stage and under its rules, and then written file by file: a
finished artifact is a source like any other, and what a pipeline makes from it has the digest of what was made from the
original places. Objects that are there with the same bytes are left alone, so a mirror that was interrupted
continues, and one that is complete is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.data import delivery
from multimodal_gemma.data.downloads import instances
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress
from multimodal_gemma.stages import download
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.data.sources.s3 import S3Source

PARTS = ("dataset", "benchmarks", "models")
RECORD = "mirror.json"  # written last: the mirror is complete
_WORKERS = 8


def run(config: Config, parts: Sequence[str], work: Path, destination: str, *, read_back: bool = False) -> Summary:
    """Copy artifacts into a bucket and check that they have arrived.

    Args:
        config: where everything comes from, as for a download.
        parts: of PARTS, what to copy.
        work: folder for the downloads; kept, so that the next mirror only fetches what has changed.
        destination: s3://BUCKET/PREFIX.
        read_back: read every object again and compare its sha256, instead of trusting what the store says of it.

    Returns:
        How many objects were written and found there; its facts are the overrides under which a pipeline reads them.

    Raises:
        InputError: a source or the store is at fault, or an object has not arrived as it was sent.
    """
    from multimodal_gemma.data.sources.base import Unavailable
    from multimodal_gemma.data.sources.s3 import S3Source

    if not destination.startswith("s3://"):
        raise InputError(f"mirror: {destination} is no bucket. Write s3://BUCKET/PREFIX.")
    log = logs.get("mirror")
    store = S3Source(destination.rstrip("/"))
    made = {part: download.run(config, part, work / part) for part in parts}
    objects: dict[str, dict[str, Any]] = {}
    etags: dict[str, str] = {}
    written = 0
    try:
        there = store.stored_all()
        for part in parts:
            items = list(_objects(work / part, part))
            with Progress("mirror", len(items), "file") as progress, ThreadPoolExecutor(_WORKERS) as pool:
                sent = pool.map(lambda item: delivery.send(store, there.get(item[0]), *item), items)
                for (name, path), (digest, new) in zip(items, sent, strict=True):
                    objects[name] = {"bytes": delivery.size(path), "sha256": digest}
                    etags[name] = _etag(path)
                    written += new
                    progress.advance()
        _check(store, objects, etags)
        if read_back:
            _read_back(store, objects)
        overrides = _overrides(config, destination.rstrip("/"), parts)
        record = {"schema_version": 1, "objects": objects, "overrides": overrides}
        content = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
        store.put(RECORD, content, hashlib.sha256(content).hexdigest())
    except Unavailable as error:
        raise InputError(
            f"mirror: {destination} cannot be written ({error}). Check AWS_ENDPOINT_URL and run again; "
            "what has arrived is kept."
        ) from None
    log.info("%s objects in %s, %s of them new", f"{len(objects):,}", destination, f"{written:,}")
    digest = files.digest_of({part: summary.digest for part, summary in made.items()})
    numbers = {"objects": float(len(objects)), "written": float(written)}
    facts = {text.partition("=")[0]: text for text in overrides}
    return Summary("mirror", work, digest, numbers, facts, cached=not written)


def _objects(folder: Path, part: str) -> Iterator[tuple[str, Path]]:
    """Yield every object of an artifact: its name in the mirror, and its file; the manifest comes last."""
    for name in [*sorted(manifest.read(folder).files), manifest.NAME]:
        yield f"{part}/{name}", folder / name


def _etag(content: Path) -> str:
    """Return the ETag of an object that is written in one piece, "" for one that is written in several."""
    from multimodal_gemma.data.sources.s3 import SINGLE_PART

    if delivery.size(content) > SINGLE_PART:
        return ""
    return hashlib.md5(content.read_bytes()).hexdigest()


def _check(store: S3Source, objects: dict[str, dict[str, Any]], etags: dict[str, str]) -> None:
    """Compare what the store says of each object with what was sent: size, and the digest of its bytes.

    An object of several parts has an ETag of their digests; of such a one the sha256 beside it is compared.
    """
    there = store.stored_all()
    for name, entry in objects.items():
        found = there.get(name)
        whole = found is not None and found.size == entry["bytes"]
        if whole and found is not None and etags[name]:
            whole = found.etag.strip('"') == etags[name]
        elif whole:
            told = store.stored(name)
            whole = told is not None and told.sha256 == entry["sha256"]
        if not whole:
            raise InputError(f"mirror: {name} has not arrived whole in {store.uri}. Run again.")


def _read_back(store: S3Source, objects: dict[str, dict[str, Any]]) -> None:
    with Progress("read back", len(objects), "object") as progress, ThreadPoolExecutor(_WORKERS) as pool:
        for name, digest in zip(objects, pool.map(store.digest, objects), strict=True):
            if digest != objects[name]["sha256"]:
                raise InputError(
                    f"mirror: {name} in {store.uri} has sha256 {digest}, not {objects[name]['sha256']} as it was sent. "
                    "Delete it and run again."
                )
            progress.advance()


def _overrides(config: Config, base: str, parts: Sequence[str]) -> list[str]:
    found = []
    if "dataset" in parts:
        found += [f"data.conversations={base}/dataset", "data.images="]  # whose images lie in it
        found += ["data.image_roots=[]"] if config.data.image_roots else []
    if "benchmarks" in parts:
        asked = config.benchmarks
        given = {"pope": asked.pope, "vqa": asked.vqa, "images": asked.images, "instances": instances(asked)}
        places = {"images": "benchmarks"}
        found += [f"benchmarks.{key}={base}/{places.get(key, f'benchmarks/{key}')}" for key, at in given.items() if at]
    if "models" in parts:
        locations = {key: getattr(config.model, key) for key in ("vision", "language", "projector", "adapter")}
        found += [f"model.{key}={base}/models/{key}" for key, uri in locations.items() if uri]
    return found
