from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimodal_gemma import files
from multimodal_gemma.data.block_store import BlockStore
from multimodal_gemma.data.blocks import cut

AVERAGE = 16
GIVEN = [f"{number:012d}.jpg" for number in range(2_000)]


def blocks(items: list[str], average: int = AVERAGE) -> list[tuple[str, list[str]]]:
    return list(cut(((item, item) for item in items), average))


def test_blocks_hold_every_item_once_in_order_and_are_of_bounded_length() -> None:
    found = blocks(GIVEN)
    assert [item for _, block in found for item in block] == GIVEN
    lengths = [len(block) for _, block in found]
    assert max(lengths) <= 4 * AVERAGE
    assert min(lengths[:-1]) >= AVERAGE // 4
    assert AVERAGE / 2 < len(GIVEN) / len(found) < 2 * AVERAGE
    assert blocks([]) == []


def test_what_is_added_at_the_end_changes_the_last_block_alone() -> None:
    before, after = blocks(GIVEN), blocks([*GIVEN, *(f"new {number}" for number in range(100))])
    assert after[: len(before) - 1] == before[:-1]


@pytest.mark.parametrize("place", [0, 77, 1_234])
def test_what_is_added_in_the_middle_moves_no_block_far_from_it(place: int) -> None:
    before = {key for key, _ in blocks(GIVEN)}
    after = [key for key, _ in blocks([*GIVEN[:place], "new", *GIVEN[place:]])]
    assert sum(key not in before for key in after) <= 3


def test_the_key_of_a_block_depends_on_each_of_its_items_and_on_their_order() -> None:
    keys = {blocks(items, 1_000)[0][0] for items in (["a", "b"], ["b", "a"], ["a"], ["ab"], ["a", "c"])}
    assert len(keys) == 5


KEY = "ab" * 32


def stored(output: Path, content: bytes = b"rows") -> BlockStore:
    store = BlockStore(output)
    store.shard("images", KEY).parent.mkdir(parents=True)
    store.shard("images", KEY).write_bytes(content)
    store.commit("images", KEY, pa.table({"name": ["x", "y"]}), [store.shard("images", KEY)])
    return store


def test_a_block_is_found_by_its_whole_key_alone(tmp_path: Path) -> None:
    store = stored(tmp_path)
    found = store.find("images", KEY)
    assert found is not None
    assert found.to_pylist() == [{"name": "x"}, {"name": "y"}]
    assert store.find("images", KEY[:16] + "0" * 48) is None  # another block whose files would have the same names
    assert store.find("conversations", KEY) is None


def test_a_block_whose_file_or_record_was_changed_is_not_found(tmp_path: Path) -> None:
    stored(tmp_path / "one")
    next((tmp_path / "one" / "images").iterdir()).write_bytes(b"rowz")
    assert BlockStore(tmp_path / "one").find("images", KEY) is None
    stored(tmp_path / "two")
    next((tmp_path / "two" / "images").iterdir()).unlink()
    assert BlockStore(tmp_path / "two").find("images", KEY) is None
    stored(tmp_path / "three")
    next((tmp_path / "three" / "records").iterdir()).write_bytes(b"PAR1 and nothing else")
    assert BlockStore(tmp_path / "three").find("images", KEY) is None


@pytest.mark.parametrize("name", ["../outside", "/etc/hosts", "images/other.arrow", "../data-" + KEY[:16] + ".arrow"])
def test_a_record_that_names_files_of_others_is_not_believed(name: str, tmp_path: Path) -> None:
    """A dataset may come from a bucket; its records must not make us copy over files outside of it."""
    store = stored(tmp_path / "base" / "set")
    target = tmp_path / "base" / "set" / name
    if not name.startswith("/"):
        target.write_bytes(b"anything")
    told = {"key": KEY, "files": {name: files.sha256_file(target)}}
    table = pa.table({"name": ["x"]}).replace_schema_metadata({b"multimodal-gemma": json.dumps(told).encode()})
    pq.write_table(table, next((tmp_path / "base" / "set" / "records").iterdir()))
    assert store.find("images", KEY) is None
    assert BlockStore(tmp_path / "out", tmp_path / "base" / "set").find("images", KEY) is None
    assert not (tmp_path / "out").exists()


def test_a_block_of_another_dataset_is_taken_over_and_stays_where_it_was(tmp_path: Path) -> None:
    stored(tmp_path / "base")
    store = BlockStore(tmp_path / "out", tmp_path / "base")
    assert store.find("images", KEY) is not None
    assert store.shard("images", KEY).read_bytes() == b"rows"
    store.keep("images", [], ["images"])
    assert not store.shard("images", KEY).exists()
    assert BlockStore(tmp_path / "base").find("images", KEY) is not None
