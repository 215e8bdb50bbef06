"""Writing Arrow tables that `datasets.load_from_disk` opens, row by row and with the same bytes every time.

`Dataset.save_to_disk` wants the whole dataset first and stamps it with a random fingerprint; here rows go to the
disk as they come, and the fingerprint is the content's digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
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


class Rows:
    """Takes the rows of one Arrow file.

    Attributes:
        size: bytes so far, roughly.
    """

    def __init__(self, stream: pa.RecordBatchStreamWriter, schema: pa.Schema) -> None:
        self.size = 0
        self._stream, self._schema = stream, schema
        self._held: list[dict[str, Any]] = []
        self._held_bytes = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        """Append a row.

        Args:
            row: a value for each column.
            size: its bytes, roughly; decides when rows leave memory.
        """
        self._held.append(row)
        self._held_bytes += size
        self.size += size
        if self._held_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        import pyarrow as pa

        if self._held:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._held, schema=self._schema))
            self._held, self._held_bytes = [], 0


@contextlib.contextmanager
def arrow_file(path: Path, features: Features) -> Iterator[Rows]:
    """Take the rows of an Arrow file, which appears whole when the block ends well.

    Args:
        path: the file; its folder is made if missing.
        features: names and types of the columns.

    Raises:
        InputError: it cannot be written, or the disk is full.
    """
    import pyarrow as pa

    schema: pa.Schema = features.arrow_schema
    with (
        files.atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
    ):
        rows = Rows(stream, schema)
        yield rows
        rows.flush()


def describe(folder: Path, features: Features, shards: Sequence[Path], identity: Sequence[str]) -> None:
    """Write the files by which `datasets.load_from_disk` opens a folder of Arrow files.

    Args:
        folder: where the files are; a table without any row gets an empty one.
        features: names and types of the columns.
        shards: the files in the order of their rows.
        identity: what tells this table from others, e.g. the digests of its files.
    """
    from datasets import DatasetInfo

    if not shards:
        shards = [folder / "data-empty.arrow"]
        with arrow_file(shards[0], features):
            pass
    with writing(folder):
        DatasetInfo(features=features).write_to_directory(str(folder), pretty_print=True)
    state: dict[str, Any] = {
        "_data_files": [{"filename": path.name} for path in shards],
        "_fingerprint": files.digest_of(identity)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    files.write_json(folder / "state.json", state)


class TableWriter:
    """Writes rows into a folder of `save_to_disk`'s layout; the folder can be opened after `close`.

    Args:
        folder: made if missing.
        features: names and types of the columns.
    """

    def __init__(self, folder: Path, features: Features) -> None:
        self._folder, self._features = folder, features
        self._shards: list[Path] = []
        self._stack = contextlib.ExitStack()
        self._rows: Rows | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            describe(self._folder, self._features, self._shards, list(map(files.sha256_file, self._shards)))

    def add(self, row: dict[str, Any], size: int) -> None:
        """Append a row, see `Rows.add`."""
        if self._rows is None or self._rows.size >= SHARD_BYTES:
            self._stack.close()
            path = self._folder / f"data-{len(self._shards):05d}.arrow"
            self._shards.append(path)
            self._rows = self._stack.enter_context(arrow_file(path, self._features))
        self._rows.add(row, size)
