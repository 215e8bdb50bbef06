"""Finished blocks of a processed dataset, found again by what they were made from.

A block is one or more Arrow files and a record beside them, all named by the digest of everything that shaped them. The
record is written last: an attempt that was killed continues with its finished blocks, and a dataset that grew keeps
the blocks that an addition left alone. What is found again has the bytes that would be made again.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = "records"
_FILES = b"multimodal-gemma"  # of a record's Parquet metadata: the key and the sha256 of each file of the block


class BlockStore:
    """The blocks of one dataset folder.

    Args:
        output: the dataset's folder.
        base: another processed dataset whose blocks may be taken over; None for none.

    Attributes:
        made: rows that were computed, by kind.
        reused: rows that were found, by kind.
    """

    def __init__(self, output: Path, base: Path | None = None) -> None:
        self._output = output
        self._places = [output] if base is None else [output, base]
        self.made: collections.Counter[str] = collections.Counter()
        self.reused: collections.Counter[str] = collections.Counter()

    def shard(self, folder: str, key: str) -> Path:
        """Return the place of a block's Arrow file in `folder` of the dataset."""
        return self._output / folder / _file(key)

    def shards(self, folder: str, keys: Iterable[str]) -> list[Path]:
        """Return the Arrow files that the blocks of `keys` have in `folder`; a block without rows there has none."""
        return [path for key in keys if (path := self.shard(folder, key)).is_file()]

    def find(self, kind: str, key: str) -> pa.Table | None:
        """Return the record of a finished block whose files are whole, None if there is none; it is taken over.

        Args:
            kind: of the block, e.g. "images".
            key: sha256 of all that shaped it.
        """
        for place in self._places:
            found = _whole(place, _record(kind, key), key)
            if found is None:
                continue
            table, names = found
            if place != self._output:
                for name in (*names, _record(kind, key)):
                    _take_over(place / name, self._output / name)
            self.reused[kind] += table.num_rows
            return table
        return None

    def commit(self, kind: str, key: str, rows: pa.Table, shards: Sequence[Path]) -> None:
        """Record a block whose files lie whole on the disk.

        Args:
            kind: of the block.
            key: sha256 of all that shaped it.
            rows: what the next attempt needs to know of it.
            shards: its files.
        """
        import pyarrow.parquet as pq

        sums = {path.relative_to(self._output).as_posix(): files.sha256_file(path) for path in shards}
        told = json.dumps({"key": key, "files": sums}, sort_keys=True).encode()
        with files.atomic_path(self._output / _record(kind, key)) as temporary:
            pq.write_table(rows.replace_schema_metadata({_FILES: told}), temporary, compression="zstd")
        self.made[kind] += rows.num_rows

    def keep(self, kind: str, keys: Collection[str], folders: Sequence[str]) -> None:
        """Delete the blocks of a kind that no longer belong to the dataset.

        Args:
            kind: of the blocks.
            keys: of those that belong to it.
            folders: where the blocks of this kind have their files.
        """
        wanted = {self._output / _record(kind, key) for key in keys}
        wanted |= {self.shard(folder, key) for key in keys for folder in folders}
        there = list((self._output / RECORDS).glob(f"{kind}-*"))
        for folder in folders:
            there += (self._output / folder).glob("*")
        for path in there:
            if path in wanted:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _file(key: str) -> str:
    return f"data-{key[:16]}.arrow"


def _record(kind: str, key: str) -> str:
    return f"{RECORDS}/{kind}-{key[:16]}.parquet"


def _whole(place: Path, record: str, key: str) -> tuple[pa.Table, list[str]] | None:
    """Return a record and the files it names, if all are what they were when it was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (place / record).is_file():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException):  # what cannot be read is made again
        table = pq.read_table(place / record)
        told: dict[str, Any] = json.loads((table.schema.metadata or {})[_FILES])
        sums: dict[str, str] = told["files"]
        # A record may come from elsewhere: it names files of its own block, one folder down, and no others.
        own = all(PurePosixPath(name).parts[1:] == (_file(key),) and name[0] not in "./" for name in sums)
        if (
            told["key"] == key
            and own
            and all(files.sha256_file(place / name) == digest for name, digest in sums.items())
        ):
            return table, list(sums)
    return None


def _take_over(source: Path, target: Path) -> None:
    """Give a file a second place: by a link where both are ours and on one disk, for neither place writes into it."""
    with files.atomic_path(target) as temporary:
        if source.stat().st_uid == os.geteuid():
            with contextlib.suppress(OSError):
                temporary.unlink()
                os.link(source, temporary)
        if not temporary.is_file() or not temporary.stat().st_size:
            shutil.copyfile(source, temporary)
