"""Arrow files of a processed dataset: written column by column, read as views of mapped memory."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from multimodal_gemma.errors import InputError

_PACK = 16 << 20  # bytes of cells that wait for their record batch


@dataclasses.dataclass
class Writer:
    """Writes the rows of an Arrow file column by column, a record batch whenever enough wait.

    Args:
        path: the file; it exists only if the block ends well.
        schema: its columns.
    """

    path: Path
    schema: pa.Schema

    def __enter__(self) -> Self:
        self._sink = pa.OSFile(str(self.path), "wb")
        self._file = pa.ipc.new_file(self._sink, self.schema)
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()
        self._sink.close()

    def add(self, row: tuple[Any, ...], size: int = 64) -> None:
        """Append a row, a cell for each column; `size` is its bytes, roughly."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= _PACK:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(cells, field.type)
                for cells, field in zip(zip(*self._rows, strict=True), self.schema, strict=True)
            ]
            self._file.write_batch(pa.record_batch(columns, schema=self.schema))
            self._rows, self._bytes = [], 0


def open_arrow(path: Path) -> pa.Table:
    """Memory-map an Arrow file.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}). Run preprocess again.") from None


class Cells:
    """The cells of a memory-mapped column of bytes, each a view: Arrow's own way makes two objects for every cell.

    Args:
        column: large_binary.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._starts = [0, *itertools.accumulate(map(len, column.chunks))]
        self._views = []
        for chunk in column.chunks:
            _, offsets, content = chunk.buffers()
            bounds = np.frombuffer(offsets, np.int64)[chunk.offset :]
            self._views.append((bounds, np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)))

    def __getitem__(self, row: int) -> np.ndarray:
        """Return uint8 (n,) at `row`, read-only."""
        chunk = bisect.bisect_right(self._starts, row) - 1
        bounds, content = self._views[chunk]
        place = row - self._starts[chunk]
        return content[bounds[place] : bounds[place + 1]]
