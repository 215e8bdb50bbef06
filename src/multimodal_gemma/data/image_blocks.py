"""The images of a processed dataset: decoded and resized once, block by block.

A block holds the images that follow each other in the raw dataset; its key is made of their names and bytes and of all
that shapes their pixels. Blocks that an earlier attempt or an earlier dataset finished are taken as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from multimodal_gemma import files, manifest, progress
from multimodal_gemma.data.block_store import BlockStore
from multimodal_gemma.data.blocks import cut
from multimodal_gemma.data.columns import Blobs
from multimodal_gemma.data.decode import Limits
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.data.images import ImageChunk, ImageOutcome
from multimodal_gemma.data.lookalikes import Lookalikes
from multimodal_gemma.data.parallel import ordered_map
from multimodal_gemma.data.preparation import Images, workers_for
from multimodal_gemma.data.processed import open_table
from multimodal_gemma.data.processed_writer import arrow_file, describe, image_features
from multimodal_gemma.data.resize import resizer_of
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.data.statistics_report import THUMBNAILS

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.config.schema import DataConfig

KIND = FOLDER = "images"
A_BLOCK = 1024  # images, about: 150 MB of pixels at 224 pixels a side
_FORMAT = 1  # raised when equal blocks come to have other bytes
_MANY, _A_CHUNK = 3_000, 16
_COMPARED = 64  # images compared with the benchmarks' at once
_RECORD = pa.schema(
    [
        ("file_name", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("kind", pa.string()),  # why it is not stored as a word, "" if it is
        ("reason", pa.string()),
        ("lookalike", pa.string()),  # the benchmark's image that shows the same picture, "" for none
    ]
)


def write_images(
    data: DataConfig,
    raw: Path,
    names: list[str],
    processor: LlavaProcessor,
    statistics: Statistics,
    output: Path,
    store: BlockStore,
    benchmarks: Path | None = None,
) -> Images:
    """Decode and resize each named image once and store it; record each that cannot be.

    Args:
        data: limits and workers.
        raw: a raw-dataset artifact.
        names: the images that are wanted, ascending.
        processor: its image processor's geometry is followed.
        statistics: receives every image.
        output: the dataset's folder.
        store: its blocks.
        benchmarks: a benchmarks artifact whose images the dataset's must not look like; None if there is none.
    """
    shards = ImageShards(raw)
    work = ImageChunk(resizer_of(processor.image_processor), Limits(data.max_image_bytes, data.max_image_pixels))
    plan = _plan(shards, names, _shaping(data, work, benchmarks))
    images = Images({}, _missing(raw, names, plan), [], {})
    keys = [key for key, _ in plan]
    store.keep(KIND, keys, [FOLDER])
    found = {key: store.find(KIND, key) for key in keys}
    fresh = {name for key, block in plan if found[key] is None for name in block}
    items = shards.iterate(fresh) if fresh else iter(())
    outcomes = ordered_map(work, items, workers=workers_for(data, len(fresh), _MANY), chunk=_A_CHUNK)
    counted = progress.track(outcomes, "preprocess", len(fresh), "image")
    known = functools.cache(lambda: _benchmark_images(benchmarks, work, data))
    drop = data.contamination == "drop"
    for key, block in plan:
        record = found.pop(key)
        if record is None:
            record = _make(store, key, itertools.islice(counted, len(block)), known(), drop)
        _account(record, images, statistics, drop)
    describe(output / FOLDER, image_features(), store.shards(FOLDER, keys), keys)
    images.thumbnails += _thumbnails(output / FOLDER, len(images.indices), work.resizer.side)
    for name, (kind, reason) in sorted(images.lost.items()):
        statistics.drop("image", name, name, kind, reason)
    return images


def _shaping(data: DataConfig, work: ImageChunk, benchmarks: Path | None) -> dict[str, Any]:
    """Return what decides on a block besides its images."""
    told = dataclasses.asdict(work)
    seen = manifest.read(benchmarks, "benchmarks").digest if benchmarks is not None else ""
    return {"format": _FORMAT, **told, "benchmarks": seen, "drop": data.contamination == "drop"}


def _plan(shards: ImageShards, names: list[str], shaping: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the key and the image names of each block, in the raw dataset's order."""
    wanted = {name: name for name in names}  # the given texts themselves: others with the same letters take memory
    stored = ((f"{name} {digest}", wanted[name]) for name, digest in shards.digests() if name in wanted)
    return [(files.digest_of([shaping, content]), block) for content, block in cut(stored, A_BLOCK)]


def _missing(raw: Path, names: list[str], plan: list[tuple[str, list[str]]]) -> dict[str, tuple[str, str]]:
    told = {row["file_name"]: str(row["reason"]) for row in files.read_jsonl(raw / "missing.jsonl", "missing images")}
    absent = set(names).difference(*(block for _, block in plan))
    return {name: ("missing", told.get(name, "it is not in the raw dataset")) for name in sorted(absent)}


def _make(store: BlockStore, key: str, outcomes: Iterator[ImageOutcome], known: Lookalikes, drop: bool) -> pa.Table:
    """Write a block and return its record."""
    path, rows = store.shard(FOLDER, key), []
    with arrow_file(path, image_features()) as table:
        for outcome, lookalike in _compared(outcomes, known):
            told = {name: getattr(outcome, name) for name in _RECORD.names if name != "lookalike"}
            rows.append({**told, "lookalike": lookalike})
            if not outcome.kind and not (lookalike and drop):
                name = outcome.file_name
                row = {"image_id": image_id(name), "file_name": name, "pixels": outcome.pixels}
                table.add(row, len(outcome.pixels))
        empty = not table.size
    if empty:
        path.unlink()
    record = pa.Table.from_pylist(rows, schema=_RECORD)
    store.commit(KIND, key, record, [] if empty else [path])
    return record


def _account(record: pa.Table, images: Images, statistics: Statistics, drop: bool) -> None:
    """Give every image of a block its row or the reason why it has none."""
    for row in record.to_pylist():
        name = row["file_name"]
        if row["kind"]:
            images.lost[name] = (row["kind"], row["reason"])
            continue
        if row["lookalike"]:
            images.lookalikes[name] = row["lookalike"]
            if drop:
                continue
        images.indices[name] = len(images.indices)
        statistics.add_image(row["format"], row["mode"], row["width"], row["height"])


def _thumbnails(folder: Path, count: int, side: int) -> list[np.ndarray]:
    """Return some of the stored images, spread over all of them; uint8 (side, side, 3)."""
    if not count:
        return []
    pixels = Blobs(open_table(folder).column("pixels"))
    shown = range(0, count, -(-count // THUMBNAILS))
    return [pixels[row].reshape(side, side, 3) for row in shown]


def _benchmark_images(folder: Path | None, work: ImageChunk, data: DataConfig) -> Lookalikes:
    """Return the benchmarks' images in the geometry of the dataset's."""
    shards = ImageShards(folder) if folder is not None else None
    items = shards.iterate() if shards is not None else iter(())
    workers = workers_for(data, len(shards) if shards is not None else 0, _MANY)
    outcomes = ordered_map(work, items, workers=workers, chunk=_A_CHUNK)
    return Lookalikes({outcome.file_name: outcome.thumbnail for outcome in outcomes if not outcome.kind})


def _compared(outcomes: Iterator[ImageOutcome], known: Lookalikes) -> Iterator[tuple[ImageOutcome, str]]:
    """Yield each outcome with the benchmark image that shows the same picture, "" for none."""
    while group := list(itertools.islice(outcomes, _COMPARED)):
        usable = [outcome for outcome in group if not outcome.kind]
        found = dict(zip(map(id, usable), known.match([outcome.thumbnail for outcome in usable]), strict=True))
        for outcome in group:
            yield outcome, found.get(id(outcome), "")
