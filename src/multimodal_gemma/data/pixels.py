"""The pictures of a raw dataset as the encoder takes them: each decoded and resized once, a slice for each shard.

A worker reads one raw shard and writes one slice of pixels: `pixels/DIGEST.arrow`, a row a picture with its sha256,
its pixels, its thumbnail, and the reason where there are none. Pictures are told apart by their bytes alone, so one
that has two names is decoded and stored once.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from multimodal_gemma import files
from multimodal_gemma.data.arrow import Writer, open_arrow
from multimodal_gemma.data.pictures import THUMBNAIL_BYTES, Limits, Resizer, decode, thumbnail
from multimodal_gemma.data.shards import PATTERN, read_shard
from multimodal_gemma.data.slices import DeadlyJob
from multimodal_gemma.errors import InputError, Unusable

FORMAT = 1  # raised when equal slices come to have other bytes
A_SLICE = 2048  # pictures at most, where a shard has more: 300 MB of pixels at 224 pixels a side
_QUALITY = 95  # of JPEG at the encoder's size, colours at full resolution
_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),
        ("format", pa.string()),  # Pillow's name of the file's format; "" if it is unusable, like all that follows
        ("mode", pa.string()),  # Pillow's mode of the stored pixels
        ("width", pa.int32()),  # of the upright photograph before resizing, pixels
        ("height", pa.int32()),
        ("thumbnail", pa.binary(THUMBNAIL_BYTES)),
        ("pixels", pa.large_binary()),  # uint8, side x side x RGB, row by row; or the bytes of a JPEG
        ("kind", pa.string()),  # why it is unusable as a word, "" if it is not
        ("reason", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Picturing:
    """What decides on a picture's pixels besides its bytes."""

    resizer: Resizer  # geometry of the encoder's image processor
    limits: Limits  # what an image may cost
    kept: str  # "raw", "jpeg", or "none": the thumbnail alone


@dataclasses.dataclass(frozen=True)
class PixelJob(DeadlyJob):
    """Makes one slice of pixels; see `slices.DeadlyJob`."""

    name: str  # place of the slice in the dataset
    shard: Path  # the raw shard
    wanted: tuple[str, ...]  # sha256 of the pictures to take from it, in its order
    picturing: Picturing  # how
    fatal: tuple[tuple[str, str], ...] = ()  # reason by sha256 of those that are not decoded

    @property
    def size(self) -> int:
        """How many pictures it makes."""
        return len(self.wanted)

    def __call__(self, path: Path, tell: Callable[[str], None]) -> None:
        """Decode, resize and write the pictures."""
        fatal = dict(self.fatal)
        with Writer(path, _SCHEMA) as rows:
            for file_name, digest, content in read_shard(self.shard, frozenset(self.wanted)):
                tell(f"{digest} ({file_name})")
                row = _unusable("crashes-decoder", fatal[digest]) if digest in fatal else self._row(content)
                rows.add((digest, *row), sum(len(cell) for cell in row if isinstance(cell, bytes)))

    def only(self, item: str) -> PixelJob:
        """Return the part of the job that makes one picture."""
        return dataclasses.replace(self, wanted=(item.split()[0],))

    def without(self, item: str, reason: str) -> PixelJob:
        """Return the job that records one picture as unusable without decoding it."""
        return dataclasses.replace(self, fatal=(*self.fatal, (item.split()[0], reason)))

    def _row(self, content: bytes) -> tuple[object, ...]:
        how = self.picturing
        try:
            decoded = decode(content, how.limits)
            pixels = how.resizer(decoded.image, how.limits)
        except Unusable as unusable:
            return _unusable(unusable.kind, unusable.reason)
        kept = {"raw": pixels.tobytes, "jpeg": lambda: _as_jpeg(pixels), "none": bytes}[how.kept]()
        return (decoded.format, decoded.mode, *decoded.image.size, thumbnail(pixels), kept, "", "")


def plan(raw: Path, wanted: Collection[str] | None, how: Picturing, folder: str) -> list[PixelJob]:
    """Return the jobs that make an artifact's pictures.

    Args:
        raw: a raw-dataset or benchmarks artifact.
        wanted: sha256 of the pictures; None: all.
        how: what becomes of them.
        folder: of the dataset where the slices go.
    """
    shaping = {"format": FORMAT, "pillow": PIL.__version__, **dataclasses.asdict(how)}
    jobs: list[PixelJob] = []
    seen: set[str] = set()
    for shard in sorted(raw.glob(PATTERN)):
        digests = [digest for digest in _digests(shard) if wanted is None or digest in wanted]
        new = [digest for digest in dict.fromkeys(digests) if digest not in seen]
        seen.update(new)
        for start in range(0, len(new), A_SLICE):
            held = new[start : start + A_SLICE]
            jobs.append(PixelJob(f"{folder}/{files.digest_of([shaping, held])[:32]}.arrow", shard, tuple(held), how))
    return jobs


def records_of(path: Path) -> list[dict[str, Any]]:
    """Return what a slice tells of each picture besides its pixels and thumbnail, in their order."""
    told: list[dict[str, Any]] = open_arrow(path).drop_columns(["pixels", "thumbnail"]).to_pylist()
    return told


def thumbnails_of(paths: Sequence[Path]) -> np.ndarray:
    """Return the thumbnails of the usable pictures of slices, uint8 (n, BYTES), in their order."""
    parts = [np.empty((0, THUMBNAIL_BYTES), np.uint8)]
    for path in paths:
        for chunk in open_arrow(path).column("thumbnail").drop_null().chunks:
            cells = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, THUMBNAIL_BYTES)
            parts.append(cells[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(parts)


def _digests(shard: Path) -> list[str]:
    try:
        found: list[str] = pq.read_table(shard, columns=["sha256"]).column(0).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{shard} is no readable Parquet file ({error}). Download the artifact again.") from None
    return found


def _unusable(kind: str, reason: str) -> tuple[object, ...]:
    return "", "", 0, 0, None, None, kind, reason


def _as_jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()
