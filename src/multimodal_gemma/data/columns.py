"""Cells of memory-mapped Arrow columns as views of their bytes.

Arrow's own way to a cell makes an object for the cell and another for its content, which costs more than what is in
it. Here each chunk's buffers are seen through numpy once, and a cell is a slice of them.
"""

from __future__ import annotations

import abc
import bisect
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class Column:
    """A column whose cells are read without touching the others.

    Args:
        column: the chunks, memory-mapped, without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._starts = [0, *itertools.accumulate(map(len, self._chunks))]

    def __len__(self) -> int:
        return self._starts[-1]

    def text(self, row: int) -> str:
        """Return the text at `row`.

        Raises:
            IndexError: there is no such row.
        """
        chunk, place = self._find(row)
        value: str = self._chunks[chunk][place].as_py()
        return value

    def _find(self, row: int) -> tuple[int, int]:
        """Return the chunk and the place in it."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"row {row} of {self._starts[-1]}")
        chunk = bisect.bisect_right(self._starts, row) - 1
        return chunk, row - self._starts[chunk]


class _Viewed(Column, abc.ABC):
    """A column of variable length, of which each chunk is seen through numpy as (offsets, items)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        super().__init__(column)
        self._views: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(self._chunks)

    def _bounds(self, row: int) -> tuple[np.ndarray, int, int]:
        """Return the items of a row's chunk, and the row's first and last of them."""
        chunk, place = self._find(row)
        view = self._views[chunk]
        if view is None:
            view = self._views[chunk] = self._view(self._chunks[chunk])
        offsets, items = view
        return items, int(offsets[place]), int(offsets[place + 1])

    @abc.abstractmethod
    def _view(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets and items of a chunk."""


class Lists(_Viewed):
    """A column of lists of numbers."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the numbers (n,) at `row`, read-only; IndexError if there is no such row."""
        items, start, end = self._bounds(row)
        return items[start:end]

    def _view(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        return chunk.offsets.to_numpy(), chunk.values.to_numpy()


class Masks(_Viewed):
    """A column of lists of truth values, which Arrow stores as bits."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return bool (n,) at `row`; IndexError if there is no such row."""
        items, start, end = self._bounds(row)
        bits = np.unpackbits(items[start // 8 : -(-end // 8)], bitorder="little")
        return bits[start % 8 : start % 8 + end - start].view(np.bool_)

    def _view(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        values = chunk.values
        bits = values.buffers()[1]
        return chunk.offsets.to_numpy() + values.offset, np.frombuffer(bits, np.uint8) if bits else np.empty(
            0, np.uint8
        )


class Blobs(_Viewed):
    """A column of bytes."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return uint8 (n,) at `row`, read-only; IndexError if there is no such row."""
        items, start, end = self._bounds(row)
        return items[start:end]

    def _view(self, chunk: Any) -> tuple[np.ndarray, np.ndarray]:
        _, offsets, content = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        return bounds, np.frombuffer(content, np.uint8)
