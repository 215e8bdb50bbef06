from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk

from multimodal_gemma import manifest
from multimodal_gemma.data import processed_writer
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.data.processed_writer import TableWriter, conversation_features, image_features
from multimodal_gemma.errors import InputError

SIDE, IMAGE_TOKENS = 4, 16
ROWS: list[dict[str, Any]] = [
    {"id": "a", "image_id": "1", "image_index": 1, "input_ids": [2, 5, 7, 8], "supervised": [False, False, True, True]},
    {"id": "b", "image_id": "", "image_index": -1, "input_ids": [2, 9], "supervised": [False, True]},
    {"id": "a", "image_id": "0", "image_index": 0, "input_ids": [5, 7, 8], "supervised": [False, False, True]},
]


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def write(folder: Path, rows: list[dict[str, Any]] = ROWS, images: int = 2) -> Path:
    for name, held in (("train", rows), ("val", [])):
        with TableWriter(folder / name, conversation_features()) as table:
            for row in held:
                table.add(row, 100)
    with TableWriter(folder / "images", image_features()) as table:
        for row in range(images):
            content = pixels(row).tobytes()
            table.add({"image_id": str(row), "file_name": f"{row}.jpg", "pixels": content}, len(content))
    facts = {"image_tokens": IMAGE_TOKENS, "image_size": SIDE, "image_token_id": 5, "pad_token_id": 0}
    manifest.write(folder, "processed-dataset", config={}, facts=facts)
    return folder


def test_samples_and_images_come_back_as_they_were_written(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    split = dataset.split("train")
    assert len(split) == 3
    for row, written in enumerate(ROWS):
        sample = split[row]
        assert (sample.id, sample.image_index) == (written["id"], written["image_index"])
        assert sample.input_ids.dtype == np.int32
        assert sample.input_ids.tolist() == written["input_ids"]
        assert sample.supervised.dtype == np.bool_
        assert sample.supervised.tolist() == written["supervised"]
    for index in range(2):
        assert np.array_equal(dataset.image(index), pixels(index))
    assert split.ids == ["a", "b", "a"]
    assert split.image_ids == ["1", "", "0"]
    assert split.image_indices.tolist() == [1, -1, 0]
    assert split.image_indices.dtype == np.int64


def test_lengths_count_an_image_as_its_patches(tmp_path: Path) -> None:
    """A placeholder of one token becomes 16 positions; a text-only row stays as it is."""
    split = ProcessedDataset(write(tmp_path)).split("train")
    assert split.lengths.tolist() == [4 - 1 + 16, 2, 3 - 1 + 16]
    assert split.lengths.dtype == np.int64
    assert split.text_lengths.tolist() == [4, 2, 3]


def test_rows_are_found_across_batches_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processed_writer, "BATCH_BYTES", 100)
    monkeypatch.setattr(processed_writer, "SHARD_BYTES", 1_000)
    dataset = ProcessedDataset(write(tmp_path, images=60))
    assert len(list((tmp_path / "images").glob("*.arrow"))) > 1
    for index in (59, 0, 31, 30, 1):
        assert np.array_equal(dataset.image(index), pixels(index))
    assert dataset.image_count == 60
    assert dataset.file_names[31] == "31.jpg"


def test_an_empty_split_can_be_read(tmp_path: Path) -> None:
    split = ProcessedDataset(write(tmp_path)).split("val")
    assert len(split) == 0
    assert split.lengths.tolist() == []


def test_the_datasets_library_opens_every_table(tmp_path: Path) -> None:
    write(tmp_path)
    train = load_from_disk(str(tmp_path / "train"))
    assert train[1] == ROWS[1]
    assert load_from_disk(str(tmp_path / "images"))[0]["pixels"] == pixels(0).tobytes()
    assert len(load_from_disk(str(tmp_path / "val"))) == 0


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
    assert len(split) == 3  # opened here, and still small to send
    assert len(pickle.dumps((dataset, split))) < 2_000
    again, rows = pickle.loads(pickle.dumps((dataset, split)))
    assert np.array_equal(again.image(1), pixels(1))
    assert rows[0].id == "a"


def test_an_unknown_split_and_a_damaged_table_are_sentences(tmp_path: Path) -> None:
    dataset = ProcessedDataset(write(tmp_path))
    with pytest.raises(InputError, match="no split 'test'"):
        dataset.split("test")
    (tmp_path / "train" / "data-00000.arrow").write_bytes(b"not arrow")
    with pytest.raises(InputError, match=r"cannot be opened as a dataset"):
        len(dataset.split("train"))


def test_an_unfinished_dataset_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no manifest"):
        ProcessedDataset(tmp_path)
