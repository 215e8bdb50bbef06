"""Writing Arrow tables that `datasets.load_from_disk` opens, row by row and with the same bytes every time.

`Dataset.save_to_disk` wants the whole dataset first and stamps it with a random fingerprint; here rows go to the
disk as they come, and the fingerprint is the content's digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from multimodal_gemma import files

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

BATCH_BYTES = 16 << 20  # rows held in memory before they are written
SHARD_BYTES = 512 << 20  # size at which the next file begins


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk into its sentence.

    Raises:
        InputError: `path` cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise files.unwritable(path, error) from error


def conversation_features() -> Features:
    """Return the columns of train/ and val/."""
    from datasets import Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "image_id": Value("string"),  # "" for text only
            "image_index": Value("int32"),  # row of images/, -1 for text only
            "input_ids": List(Value("int32")),  # one placeholder where an image stands
            "supervised": List(Value("bool")),  # same length
        }
    )


def image_features() -> Features:
    """Return the columns of images/."""
    from datasets import Features, Value

    return Features(
        {
            "image_id": Value("string"),
            "file_name": Value("string"),
            "pixels": Value("binary"),  # uint8, height x width x RGB, row by row
        }
    )


class TableWriter:
    """Writes rows into a folder of `save_to_disk`'s layout; the folder can be opened after `close`.

    Args:
        folder: made if missing.
        features: names and types of the columns.
    """

    def __init__(self, folder: Path, features: Features) -> None:
        self.rows = 0
        self._folder, self._features = folder, features
        self._schema: pa.Schema = features.arrow_schema
        self._held: list[dict[str, Any]] = []
        self._held_bytes = self._shard_bytes = 0
        self._shards: list[Path] = []
        self._sink: Any = None
        self._stream: Any = None
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._open_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._sink.close()

    def add(self, row: dict[str, Any], size: int) -> None:
        """Append a row.

        Args:
            row: a value for each column.
            size: its bytes, roughly; decides when rows leave memory.
        """
        if self._shard_bytes >= SHARD_BYTES:
            self._close_shard()
            self._open_shard()
        self._held.append(row)
        self._held_bytes += size
        self._shard_bytes += size
        self.rows += 1
        if self._held_bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is held and the files that describe the folder."""
        from datasets import DatasetInfo

        self._close_shard()
        with writing(self._folder):
            DatasetInfo(features=self._features).write_to_directory(str(self._folder), pretty_print=True)
        digests = [files.sha256_file(path) for path in self._shards]
        state: dict[str, Any] = {
            "_data_files": [{"filename": path.name} for path in self._shards],
            "_fingerprint": files.digest_of(digests)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        files.write_json(self._folder / "state.json", state)

    def _open_shard(self) -> None:
        import pyarrow as pa

        path = self._folder / f"data-{len(self._shards):05d}.arrow"
        self._shards.append(path)
        self._shard_bytes = 0
        with writing(path):
            self._sink = pa.OSFile(str(path), "wb")
            self._stream = pa.ipc.new_stream(self._sink, self._schema)

    def _close_shard(self) -> None:
        self._flush()
        with writing(self._shards[-1]):
            self._stream.close()
            self._sink.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            batch = pa.RecordBatch.from_pylist(self._held, schema=self._schema)
            with writing(self._shards[-1]):
                self._stream.write_batch(batch)
            self._held, self._held_bytes = [], 0
