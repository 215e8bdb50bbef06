from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.data import json_list
from multimodal_gemma.errors import InputError

VALUES: list[Any] = [
    {"id": "a", "text": 'quotes " and \\ and ] and é and 🐈'},
    [1, [2]],
    "text, with [brackets]",
    1234567890,
    -1.5e3,
    None,
    True,
    {},
]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_items_are_those_of_the_whole_list_wherever_pieces_end(
    piece: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "_PIECE", piece)
    path = tmp_path / "list.json"
    for values in (VALUES, [], VALUES[3:4]):
        for ascii_only in (True, False):
            text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
            path.write_text(f" \n{text}\n ", encoding="utf-8")
            assert list(json_list.items(path, "talk")) == values


@pytest.mark.parametrize("value", [{"a": 1}, 5, "text", None])
def test_something_else_than_a_list_is_handed_over(value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(json_list.NotAList) as caught:
        list(json_list.items(tmp_path / "a.json", "talk"))
    assert caught.value.value == value


@pytest.mark.parametrize(
    "text", ["", "[", '[{"a": 1}', '[{"a": 1},', '[{"a": 1},]', "[1 2]", "[1] 2", '[{"a": }]', '[1, "x]', "[,1]"]
)
def test_what_is_no_whole_document_is_a_sentence_with_the_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"talk: .*a.json is no whole JSON document \(line 1, column \d+"):
        list(json_list.items(tmp_path / "a.json", "talk"))


def test_a_file_that_is_not_there_or_no_text_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(json_list.items(tmp_path / "none.json", "talk"))
    with pytest.raises(InputError, match="is a folder"):
        list(json_list.items(tmp_path, "talk"))
    (tmp_path / "a.json").write_bytes(b'["\xff\xfe"]')
    with pytest.raises(InputError, match="is no UTF-8 text"):
        list(json_list.items(tmp_path / "a.json", "talk"))


def test_a_long_list_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "word " * 200, "number": number} for number in range(20_000)]))
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_list.items(path, "talk")) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
