"""Mirror: data and base models into an S3 bucket, so that a cluster without internet needs only s3:// locations.

What is mirrored is downloaded first, by the download stage and under its rules, and then written file by file: a
finished artifact is a source like any other, and what a pipeline makes from it has the digest of what was made from the
original places. Objects that are there with the same bytes are left alone, so a mirror that was interrupted
continues, and one that is complete is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.data import delivery, downloads
from multimodal_gemma.data.sources.buckets import S3Source
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress
from multimodal_gemma.stages import download
from multimodal_gemma.stages.summary import Summary

PARTS = ("dataset", "benchmarks", "models")
RECORD = "mirror.json"  # written last: the mirror is complete


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
    if not destination.startswith("s3://"):
        raise InputError(f"mirror: {destination} is no bucket. Write s3://BUCKET/PREFIX.")
    base = destination.rstrip("/")
    store = S3Source(base)
    made = {part: download.run(config, part, work / part) for part in parts}
    paths: dict[str, Path] = {}
    for part in parts:
        names = [*sorted(manifest.read(work / part).files), manifest.NAME]
        paths |= {f"{part}/{name}": work / part / name for name in names}
    with delivery.reaching("mirror", destination):
        sent = delivery.send(store, paths, store.stored_all(), "mirror")
        there = store.stored_all()
        for name, one in sent.items():
            if not one.is_whole(store, name, there.get(name)):
                raise InputError(f"mirror: {name} has not arrived whole in {store.uri}. Run again.")
        if read_back:
            _read_back(store, sent)
        for part in parts:  # revisions and licences, for the report of whoever reads the mirror
            told = files.read_json(work / part / downloads.SOURCES, "sources")
            delivery.put_json(store, f"{part}/{downloads.SOURCES}", told)
        overrides = _overrides(config, base, parts)
        objects = {name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in sent.items()}
        delivery.put_json(store, RECORD, {"schema_version": 1, "objects": objects, "overrides": overrides})
    written = sum(one.new for one in sent.values())
    logs.get("mirror").info("%s objects in %s, %s of them new", f"{len(sent):,}", destination, f"{written:,}")
    digest = files.digest_of({part: summary.digest for part, summary in made.items()})
    numbers = {"objects": float(len(sent)), "written": float(written)}
    facts = {text.partition("=")[0]: text for text in overrides}
    return Summary("mirror", work, digest, numbers, facts, cached=not written)


def _read_back(store: S3Source, sent: Mapping[str, delivery.Sent]) -> None:
    with Progress("read back", len(sent), "object") as progress, ThreadPoolExecutor(delivery.WORKERS) as pool:
        for (name, one), digest in zip(sent.items(), pool.map(store.digest, sent), strict=True):
            if digest != one.sha256:
                raise InputError(
                    f"mirror: {name} in {store.uri} has sha256 {digest}, not {one.sha256} as it was sent. "
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
        given = {"pope": asked.pope, "vqa": asked.vqa, "images": asked.images, "instances": downloads.instances(asked)}
        places = {"images": "benchmarks"}
        found += [f"benchmarks.{key}={base}/{places.get(key, f'benchmarks/{key}')}" for key, at in given.items() if at]
    if "models" in parts:
        locations = {key: getattr(config.model, key) for key in ("vision", "language", "projector", "adapter")}
        found += [f"model.{key}={base}/models/{key}" for key, uri in locations.items() if uri]
    return found
