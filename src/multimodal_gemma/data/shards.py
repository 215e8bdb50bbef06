"""Pictures by the thousand in a few files.

A folder of 81,000 small files is slow to list, copy, hash and upload. The same bytes in Parquet shards of at most 256
MB are some hundred files at most, each readable by any tool that reads Parquet.

A picture is its bytes: `images-*.parquet` hold one row for each sha256, whatever the datasets call it, and
`names.parquet` says which picture each name means. GQA and Visual Genome name one photograph twice; it is stored,
encoded and held out once. In a folder without `names.parquet` each picture has the one name of its row.

COCO's picture 310196 is `COCO_val2014_000000310196.jpg` in one release and `000000310196.jpg` in another: the twelve
digits are its `image_id`, which tells whether a benchmark asks about a picture that was trained on.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

PATTERN = "images-*.parquet"
NAMES = "names.parquet"
MAX_SHARD_BYTES = 256_000_000
_GROUP_BYTES = 4_000_000  # image bytes in a row group, the least that a random read takes from the disk
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("file_name", pa.string()), ("bytes", pa.large_binary()), ("sha256", pa.string())]
)

NAMES_SCHEMA = pa.schema([("file_name", pa.string()), ("sha256", pa.string())])
_TWELVE_DIGITS = re.compile(r"(?<!\d)(\d{12})(?!\d)")


def image_id(file_name: str) -> str:
    """Return the twelve-digit COCO id in the last part of a file name, or the whole name where there is none.

    `coco/train2017/000000310196.jpg` gives 000000310196; `gqa/images/2370799.jpg` stays as it is.
    """
    found = _TWELVE_DIGITS.search(file_name.rpartition("/")[2])
    return found.group(1) if found else file_name


def write_names(folder: Path, names: Mapping[str, str]) -> None:
    """Write `names.parquet`.

    Args:
        folder: the artifact.
        names: sha256 by file name.
    """
    ascending = sorted(names)
    columns = [pa.array(ascending, pa.string()), pa.array([names[name] for name in ascending], pa.string())]
    with files.atomic_path(folder / NAMES) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=NAMES_SCHEMA), temporary)


def read_names(folder: Path) -> dict[str, str]:
    """Return the sha256 by file name of `names.parquet`, ascending.

    Raises:
        InputError: the file cannot be read.
    """
    table = _open(folder / NAMES, NAMES_SCHEMA).read()
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def read_shard(path: Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Yield (file_name, sha256, bytes) of each row of a shard, one row group in memory at a time.

    Args:
        path: the shard.
        wanted: sha256 of the pictures to yield, each once; None: every row.

    Raises:
        InputError: the shard cannot be read.
    """
    shard = _open(path)
    left = None if wanted is None else set(wanted)
    for group in range(shard.num_row_groups):
        table = shard.read_row_group(group, columns=["file_name", "sha256"])
        names, digests = (column.to_pylist() for column in table.columns)
        if left is not None and left.isdisjoint(digests):
            continue
        contents = shard.read_row_group(group, columns=["bytes"]).column(0)
        for row, (name, digest) in enumerate(zip(names, digests, strict=True)):
            if left is None or digest in left:
                yield name, digest, contents[row].as_py()
                if left is not None:
                    left.remove(digest)


def read_rows(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (file_name, sha256, size) of each row of a file of `write_rows`, the size also where the bytes repeat."""
    sizes: dict[str, int] = {}
    for name, digest, content in read_shard(path):
        yield name, digest, sizes.setdefault(digest, len(content or b""))


def write_rows(path: Path, items: Iterable[tuple[str, str, bytes | None]]) -> None:
    """Write (file_name, sha256, bytes) into one file in a shard's columns; None where an earlier row has the bytes.

    Raises:
        InputError: the folder cannot be written.
    """
    with files.atomic_path(path) as temporary:
        _fill(temporary, iter(items), float("inf"))


def write_image_shards(
    folder: Path, items: Iterable[tuple[str, bytes]], max_bytes: float = MAX_SHARD_BYTES, *, first: int = 0
) -> list[Path]:
    """Write pictures into `images-00000.parquet`, `images-00001.parquet` and so on, in the order in which they come.

    Args:
        folder: where the shards go; each one appears whole.
        items: (file_name, bytes); consumed one by one.
        max_bytes: image bytes a shard may hold; a single larger image has a shard to itself.
        first: number of the first shard.

    Returns:
        The shards, in order; none if there is no image.

    Raises:
        InputError: the folder cannot be written.
    """
    written: list[Path] = []
    stream: Iterator[Row] = ((name, files.sha256_bytes(content), content) for name, content in items)
    item = next(stream, None)
    while item is not None:
        path = folder / f"images-{first + len(written):05d}.parquet"
        with files.atomic_path(path) as temporary:
            item = _fill(temporary, itertools.chain([item], stream), max_bytes)
        written.append(path)
    return written


Row = tuple[str, str, bytes | None]


def _fill(path: Path, stream: Iterator[Row], max_bytes: float) -> Row | None:
    """Fill one file and return the row that did not fit, None at the end of them."""
    held = group_bytes = 0
    group: list[Row] = []
    # Photographs are compressed already, and a dictionary of unique values only costs time.
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False) as writer:
        for row in stream:
            size = len(row[2] or b"")
            if held and held + size > max_bytes:
                break
            group.append(row)
            held += size
            group_bytes += size
            if group_bytes >= _GROUP_BYTES:
                writer.write_table(_table(group))
                group, group_bytes = [], 0
        else:
            row = None
        if group:
            writer.write_table(_table(group))
    return row


def _table(group: list[Row]) -> pa.Table:
    names, digests, contents = zip(*group, strict=True)
    columns = [
        pa.array([image_id(name) for name in names], pa.string()),
        pa.array(names, pa.string()),
        pa.array(contents, pa.large_binary()),
        pa.array(digests, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


class ImageShards:
    """The pictures of an artifact, by any of their names.

    Args:
        place: the folder that holds `images-*.parquet`, or none of them; or the shards themselves.

    Raises:
        InputError: a shard cannot be read.
    """

    def __init__(self, place: Path | Sequence[Path]) -> None:
        self._folder = place if isinstance(place, Path) else None
        self._shards = [_open(path) for path in (sorted(place.glob(PATTERN)) if isinstance(place, Path) else place)]
        self._held: tuple[tuple[int, int], Any] | None = None  # the row group read last: neighbours ask for it again
        self._lock = threading.Lock()  # a ParquetFile asked by two threads at once crashes the process

    @functools.cached_property
    def _rows(self) -> list[tuple[str, str, int, int, int]]:
        """(file_name, sha256, shard, row group, row) of each picture."""
        rows = []
        for number, shard in enumerate(self._shards):
            for group in range(shard.num_row_groups):
                with self._lock:
                    table = shard.read_row_group(group, columns=["file_name", "sha256"])
                pairs = zip(*(column.to_pylist() for column in table.columns), strict=True)
                rows += [(name, digest, number, group, row) for row, (name, digest) in enumerate(pairs)]
        return rows

    @functools.cached_property
    def _place(self) -> dict[str, tuple[int, int, int]]:
        """Shard, row group and row by sha256, of the first row that has it: later ones may be without the bytes."""
        return {digest: place for _, digest, *place in reversed(self._rows)}  # type: ignore[misc]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """The sha256 by file name, ascending."""
        if self._folder is not None and (self._folder / NAMES).is_file():
            return read_names(self._folder)
        return dict(sorted((name, digest) for name, digest, *_ in self._rows))

    def __len__(self) -> int:
        return sum(shard.metadata.num_rows for shard in self._shards)

    def __contains__(self, file_name: object) -> bool:
        return file_name in self._names

    def names(self) -> list[str]:
        """Return every file name, ascending; several may mean one picture."""
        return list(self._names)

    def sha256(self, file_name: str) -> str:
        """Return the identity of the picture that a name means.

        Raises:
            InputError: no picture has that name.
        """
        digest = self._names.get(file_name)
        if digest is None or digest not in self._place:
            raise InputError(
                f"{self._folder} holds no image {file_name!r}. Its missing.jsonl says why, or run download again."
            )
        return digest

    def read(self, file_name: str) -> bytes:
        """Return the bytes of one picture, as published.

        Raises:
            InputError: no picture has that name.
        """
        content = self.find(self.sha256(file_name))
        assert content is not None
        return content

    def find(self, sha256: str) -> bytes | None:
        """Return the bytes of a picture by its identity, None if it is not here."""
        if sha256 not in self._place:
            return None
        shard, group, row = self._place[sha256]
        with self._lock:
            held = self._held
            if held is None or held[0] != (shard, group):
                held = self._held = (shard, group), self._contents(shard, group)
        content: bytes = held[1][row].as_py()
        return content

    def _contents(self, shard: int, group: int) -> Any:
        return self._shards[shard].read_row_group(group, columns=["bytes"]).column(0)

    def digests(self) -> Iterator[tuple[str, str]]:
        """Yield (file_name, sha256) of every picture, as the shards state them."""
        yield from ((name, digest) for name, digest, *_ in self._rows)


def _open(path: Path, schema: pa.Schema = SCHEMA) -> pq.ParquetFile:
    try:
        shard = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}). Download the artifact again.") from None
    if not set(schema.names) <= set(shard.schema_arrow.names):
        raise InputError(f"{path} lacks the columns {', '.join(schema.names)}. Download the artifact again.")
    return shard
