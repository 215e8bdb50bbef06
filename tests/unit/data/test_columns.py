from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from multimodal_gemma.data.columns import Blobs, Column, Lists, Masks


def chunked(values: list[object], kind: pa.DataType) -> pa.ChunkedArray:
    """Chunks of 1, 0, 2 and the remaining cells; the last one is a slice that does not begin with its buffers."""
    head = [pa.array(values[:1], kind), pa.array([], kind), pa.array(values[1:3], kind)]
    return pa.chunked_array([*head, pa.array([values[0], *values[3:]], kind)[1:]])


def lists(kind: type, count: int = 40) -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 2, length).astype(kind) for length in [0, 9, *numbers.integers(0, 30, count - 2)]]


def test_lists_are_what_arrow_says_and_share_its_memory() -> None:
    values = lists(np.int32)
    arrow = chunked(values, pa.list_(pa.int32()))
    column = Lists(arrow)
    assert len(column) == len(values)
    for row, value in enumerate(values):
        assert column[row].dtype == np.int32
        assert column[row].tolist() == value.tolist() == arrow[row].as_py()
    chunk = arrow.chunk(2)
    buffer = chunk.values.buffers()[1]
    assert np.shares_memory(column[1], np.frombuffer(buffer, np.int32))


def test_masks_come_out_of_bits_wherever_they_begin() -> None:
    values = lists(np.bool_)
    column = Masks(chunked(values, pa.list_(pa.bool_())))
    for row, value in enumerate(values):
        assert column[row].dtype == np.bool_
        assert column[row].tolist() == value.tolist()


def test_masks_of_values_that_are_a_slice_themselves() -> None:
    values = pa.array([True] * 5 + [False, True, True, False])[5:]
    array = pa.ListArray.from_arrays(pa.array([0, 1, 4], pa.int32()), values)
    column = Masks(pa.chunked_array([array]))
    assert [column[row].tolist() for row in range(2)] == [[False], [True, True, False]]


def test_bytes_and_texts_are_found_in_every_chunk() -> None:
    contents = [bytes([row] * (row % 7)) for row in range(40)]
    blobs = Blobs(chunked(list(contents), pa.binary()))
    assert [blobs[row].tobytes() for row in range(40)] == contents
    texts = Column(chunked([str(row) for row in range(40)], pa.string()))
    assert [texts.text(row) for row in range(40)] == [str(row) for row in range(40)]


@pytest.mark.parametrize("row", [-1, 40])
def test_a_row_that_is_not_there_is_an_error_and_not_another_row(row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} of 40"):
        Lists(chunked(lists(np.int32), pa.list_(pa.int32())))[row]
    with pytest.raises(IndexError):
        Lists(pa.chunked_array([], pa.list_(pa.int32())))[0]
