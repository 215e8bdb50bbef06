from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from multimodal_gemma import manifest
from multimodal_gemma.data import processed
from multimodal_gemma.data.arrow import Writer
from multimodal_gemma.data.processed import ProcessedDataset, Row
from multimodal_gemma.errors import InputError

SIDE, IMAGE_TOKENS = 4, 16
ROWS = [Row("a", "1", 1, 4), Row("b", "", -1, 2), Row("a", "0", 0, 3)]
TOKENS = [
    ([2, 5, 7, 8], [False, False, True, True]),
    ([2, 9], [False, True]),
    ([5, 7, 8], [False, False, True]),
]


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def write(folder: Path, images: int = 2) -> Path:
    """Write a dataset whose pictures lie in two slices, the even ones in the first."""
    processed.write_split(folder / "train", ROWS, [(np.array(ids), np.array(mask)) for ids, mask in TOKENS])
    processed.write_split(folder / "val", [], [])
    (folder / "pixels").mkdir()
    for odd in (0, 1):
        with Writer(folder / "pixels" / f"{odd}.arrow", pa.schema([("pixels", pa.large_binary())])) as table:
            for row in range(odd, images, 2):
                table.add((pixels(row).tobytes(),), 10 << 20)  # so that a record batch holds two rows
    processed.write_images(folder, [(f"{row}.jpg", f"{row:064d}", row % 2, row // 2) for row in range(images)])
    facts = {"image_tokens": IMAGE_TOKENS, "image_size": SIDE, "image_token_id": 5, "pad_token_id": 0}
    facts |= {"pixels": "raw", "slices": ["0.arrow", "1.arrow"]}
    manifest.write(folder, "processed-dataset", config={}, facts=facts)
    return folder


def test_samples_and_images_come_back_as_they_were_written(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    split = dataset.split("train")
    assert len(split) == 3
    for row, (written, (ids, mask)) in enumerate(zip(ROWS, TOKENS, strict=True)):
        sample = split[row]
        assert (sample.id, sample.image_index) == (written.id, written.image_index)
        assert sample.input_ids.dtype == np.int32
        assert sample.input_ids.tolist() == ids
        assert sample.supervised.dtype == np.bool_
        assert sample.supervised.tolist() == mask
    for index in range(2):
        assert np.array_equal(dataset.image(index), pixels(index))
    assert split.ids == ["a", "b", "a"]
    assert split.image_ids == ["1", "", "0"]
    assert split.image_indices.tolist() == [1, -1, 0]
    assert split.image_indices.dtype == np.int64
    with pytest.raises(IndexError):
        split[3]


def test_the_tokens_of_a_split_are_one_array_that_numpy_alone_reads(tmp_path: Path) -> None:
    write(tmp_path)
    ids, mask = (np.load(tmp_path / "train" / name) for name in ("input_ids.npy", "supervised.npy"))
    assert ids.tolist() == [token for tokens, _ in TOKENS for token in tokens]
    assert mask.tolist() == [learnt for _, flags in TOKENS for learnt in flags]
    assert ProcessedDataset(tmp_path).split("train").bounds.tolist() == [0, 4, 6, 9]


def test_lengths_count_an_image_as_its_patches(tmp_path: Path) -> None:
    """A placeholder of one token becomes 16 positions; a text-only row stays as it is."""
    split = ProcessedDataset(write(tmp_path)).split("train")
    assert split.lengths.tolist() == [4 - 1 + 16, 2, 3 - 1 + 16]
    assert split.lengths.dtype == np.int64
    assert split.text_lengths.tolist() == [4, 2, 3]


def test_images_are_found_across_batches_and_slices(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path, images=60))
    for index in (59, 0, 31, 30, 1):
        assert np.array_equal(dataset.image(index), pixels(index))
    assert dataset.image_count == 60
    assert dataset.file_names[31] == "31.jpg"


def test_an_empty_split_can_be_read(tmp_path: Path) -> None:
    split = ProcessedDataset(write(tmp_path)).split("val")
    assert len(split) == 0
    assert split.lengths.tolist() == []
    assert split.input_ids.shape == (0,)


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert manifest.read(tmp_path / "one").digest == manifest.read(tmp_path / "two").digest


def test_an_image_index_out_of_range_is_an_error_and_not_another_image(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    for index in (-1, 2):
        with pytest.raises(IndexError):
            dataset.image(index)


def test_a_data_worker_gets_the_dataset_by_its_place(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    split = dataset.split("train")
    assert split[0].id == "a"  # opened here, and still small to send
    assert len(pickle.dumps((dataset, split))) < 3_000
    again, rows = pickle.loads(pickle.dumps((dataset, split)))
    assert np.array_equal(again.image(1), pixels(1))
    assert rows[0].id == "a"


@pytest.mark.parametrize("name", ["rows.arrow", "input_ids.npy"])
def test_an_unknown_split_and_a_damaged_file_are_sentences(tmp_path: Path, name: str) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    with pytest.raises(InputError, match="no split 'test'"):
        dataset.split("test")
    (tmp_path / "train" / name).write_bytes(b"not what it was")
    with pytest.raises(InputError, match=rf"{name} cannot be read .* Run preprocess again"):
        dataset.split("train")[0]


def test_an_unfinished_dataset_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no manifest"):
        ProcessedDataset(tmp_path)
