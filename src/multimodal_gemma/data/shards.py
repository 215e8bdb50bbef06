"""Images by the thousand in a few files.

A folder of 81,000 small files is slow to list, copy, hash and upload. The same bytes in Parquet shards of at most 256
MB are a few dozen files, each readable by any tool that reads Parquet, with a sha256 beside every image.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multimodal_gemma import files
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.errors import InputError

PATTERN = "images-*.parquet"
MAX_SHARD_BYTES = 256_000_000
_GROUP_BYTES = 4_000_000  # image bytes in a row group, the least that a random read takes from the disk
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("file_name", pa.string()), ("bytes", pa.large_binary()), ("sha256", pa.string())]
)


def write_image_shards(
    folder: Path,
    items: Iterable[tuple[str, bytes]],
    max_bytes: float = MAX_SHARD_BYTES,
    *,
    first: int = 0,
    finished: Callable[[Path], object] = lambda _: None,
) -> list[Path]:
    """Write images into `images-00000.parquet`, `images-00001.parquet` and so on.

    Args:
        folder: where the shards go; each one appears whole.
        items: (file_name, bytes) in strictly ascending order of file_name; consumed one by one.
        max_bytes: image bytes a shard may hold; a single larger image has a shard to itself.
        first: number of the first shard.
        finished: called after each shard.

    Returns:
        The shards, in order; none if there is no image.

    Raises:
        ValueError: the names do not ascend.
        InputError: the folder cannot be written.
    """
    shards: list[Path] = []
    stream = _ascending(items)
    item = next(stream, None)
    while item is not None:
        path = folder / f"images-{first + len(shards):05d}.parquet"
        with files.atomic_path(path) as temporary:
            item = _write_shard(temporary, item, stream, max_bytes)
        shards.append(path)
        finished(path)
    return shards


def _write_shard(
    path: Path, first: tuple[str, bytes], rest: Iterator[tuple[str, bytes]], max_bytes: float
) -> tuple[str, bytes] | None:
    """Fill one shard and return the item that did not fit, None at the end of the images."""
    item: tuple[str, bytes] | None = first
    held = 0
    # Photographs are compressed already, and a dictionary of unique values only costs time.
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False) as writer:
        group: list[tuple[str, bytes]] = []
        group_bytes = 0
        while item is not None and (held == 0 or held + len(item[1]) <= max_bytes):
            group.append(item)
            held += len(item[1])
            group_bytes += len(item[1])
            if group_bytes >= _GROUP_BYTES:
                writer.write_table(_table(group))
                group, group_bytes = [], 0
            item = next(rest, None)
        if group:
            writer.write_table(_table(group))
    return item


def _table(group: list[tuple[str, bytes]]) -> pa.Table:
    names, contents = [name for name, _ in group], [content for _, content in group]
    columns = [
        pa.array([image_id(name) for name in names], pa.string()),
        pa.array(names, pa.string()),
        pa.array(contents, pa.large_binary()),
        pa.array([hashlib.sha256(content).hexdigest() for content in contents], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _ascending(items: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    last: str | None = None
    for name, content in items:
        if last is not None and name <= last:
            raise ValueError(f"image {name!r} follows {last!r}: shards are written in ascending order of file name")
        last = name
        yield name, content


class ImageShards:
    """The images of an artifact, by file name.

    Args:
        place: a folder with `images-*.parquet`, which may hold none, or the shards themselves.

    Raises:
        InputError: a shard cannot be read.
    """

    def __init__(self, place: Path | Sequence[Path]) -> None:
        paths = sorted(place.glob(PATTERN)) if isinstance(place, Path) else place
        self._folder = place if isinstance(place, Path) else paths[0].parent
        self._shards = [_open(path) for path in paths]
        self._held: tuple[tuple[int, int], Any] | None = None  # the row group read last: neighbours ask for it again

    @functools.cached_property
    def _place(self) -> dict[str, tuple[int, int, int]]:
        """Shard, row group and row by file name."""
        place: dict[str, tuple[int, int, int]] = {}
        for number, shard in enumerate(self._shards):
            for group in range(shard.num_row_groups):
                names = shard.read_row_group(group, columns=["file_name"]).column(0).to_pylist()
                place.update({name: (number, group, row) for row, name in enumerate(names)})
        return place

    def __len__(self) -> int:
        return sum(shard.metadata.num_rows for shard in self._shards)

    def __contains__(self, file_name: object) -> bool:
        return file_name in self._place

    def names(self) -> list[str]:
        """Return every file name, ascending."""
        return sorted(self._place)

    def image_bytes(self) -> int:
        """Return the size of all images together, without reading them into memory at once."""
        groups = ((shard, group) for shard in self._shards for group in range(shard.num_row_groups))
        tables = (shard.read_row_group(group, columns=["bytes"]) for shard, group in groups)
        return sum(len(content.as_buffer()) for table in tables for content in table.column(0))

    def read(self, file_name: str) -> bytes:
        """Return the bytes of one image, as published.

        Raises:
            InputError: no shard holds that image.
        """
        place = self._place.get(file_name)
        if place is None:
            raise InputError(
                f"{self._folder} holds no image {file_name!r}. Its missing.jsonl says why, or run download again."
            )
        shard, group, row = place
        held = self._held
        if held is None or held[0] != (shard, group):
            held = self._held = (shard, group), self._shards[shard].read_row_group(group, columns=["bytes"]).column(0)
        content: bytes = held[1][row].as_py()
        return content

    def iterate(self, wanted: Container[str] | None = None) -> Iterator[tuple[str, bytes]]:
        """Yield (file_name, bytes) of every image, one row group in memory at a time.

        Names ascend within a shard; a dataset that grew has its new images in shards of their own at the end.

        Args:
            wanted: the images to yield; None for all.
        """
        for shard in self._shards:
            for group in range(shard.num_row_groups):
                names = shard.read_row_group(group, columns=["file_name"]).column(0).to_pylist()
                rows = [row for row, name in enumerate(names) if wanted is None or name in wanted]
                if rows:
                    contents = shard.read_row_group(group, columns=["bytes"]).column(0)
                    yield from ((names[row], contents[row].as_py()) for row in rows)

    def digests(self) -> Iterator[tuple[str, str]]:
        """Yield (file_name, sha256) of every image in the order of `iterate`, as the shards state them."""
        for shard in self._shards:
            for group in range(shard.num_row_groups):
                table = shard.read_row_group(group, columns=["file_name", "sha256"])
                yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def _open(path: Path) -> pq.ParquetFile:
    try:
        shard = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}). Download the artifact again.") from None
    if not set(SCHEMA.names) <= set(shard.schema_arrow.names):
        raise InputError(f"{path} lacks the columns {', '.join(SCHEMA.names)}. Download the artifact again.")
    return shard
