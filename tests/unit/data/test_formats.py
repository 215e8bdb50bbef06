"""Published conversations: what is right is read as its publisher meant it, what is wrong is counted with a reason."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimodal_gemma.data import formats
from multimodal_gemma.data.conversations import Conversation, Turn, embedded_name, image_names
from multimodal_gemma.errors import InputError
from tests.unit.data import making

PHOTO = making.image_bytes()
NAMED = f"embedded/{hashlib.sha256(PHOTO).hexdigest()}/"


def entry(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"id": "one", **fields, "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


GOOD = entry(("human", "<image>\nWhat?"), ("gpt", "A cat."), image="a.jpg")
TALK = [Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")]


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "talk.json"
    content = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def read(path: Path, **settings: Any) -> list[Conversation | formats.Fault]:
    return [row.read for row in formats.read(path, "talk.json", **settings)]


def right(path: Path, **settings: Any) -> list[Conversation]:
    found = read(path, **settings)
    assert not [item for item in found if isinstance(item, formats.Fault)]
    return [item for item in found if isinstance(item, Conversation)]


# Files


def test_the_photograph_sample_is_read_whole(shared: Path) -> None:
    conversations = right(shared / "coco-sample" / "llava_instruct_sample.json")
    assert len(conversations) == 72
    assert len(image_names(conversations)) == 36
    first = conversations[0]
    assert (first.id, first.image) == ("000000005802", "000000005802.jpg")
    assert first.turns[3] == Turn("assistant", "7")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r", "\n\ufeff"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_are_as_good_as_a_list(end: str, mark: str, packed: bool, tmp_path: Path) -> None:
    for layout in (end.join(json.dumps(GOOD) for _ in range(3)) + end, json.dumps([GOOD] * 3, indent=1)):
        content = (mark + layout).encode("utf-8")
        path = tmp_path / "talk"
        path.write_bytes(gzip.compress(content) if packed else content)
        assert [item.turns for item in right(path)] == [TALK] * 3


def test_json_lines_of_others_are_read(shared: Path) -> None:
    (path,) = (path for path in (shared / "cases" / "04-jsonl").rglob("c.json*"))
    assert all(isinstance(item, Conversation) for item in read(path))
    assert read(path)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_items_are_those_of_the_whole_file_wherever_pieces_end(
    piece: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PIECE", piece)
    values = [
        entry(("human", 'quotes " and \\ and ] and é and 🐈'), ("gpt", "text, with [brackets]")),
        entry(("human", "line\u0085and\u2028more"), ("gpt", "x"), id=1234567890, weight=-1.5e3, extra=[1, [2], None]),
    ]
    for ascii_only in (True, False):
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        lines = "\n".join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
        for content in (f" \n{text}\n ", lines):
            found = right(written(tmp_path, content))
            assert [[turn.text for turn in item.turns] for item in found] == [
                [turn["value"] for turn in value["conversations"]] for value in values
            ]
            assert found[1].id == "1234567890"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("text", "neither a JSON list nor JSON lines"),
        ("[", "it breaks off|Expecting"),
        ('[{"a": 1}', "it breaks off"),
        ('[{"a": 1},', "no whole JSON document"),
        ('[{"a": 1},]', "no whole JSON document"),
        ("[" + str([GOOD] * 2)[1:], "Correct it there"),
        ('[{"a": 1}][{"a": 1}]', "Give one list, or one conversation a line"),
        ('[{"a": 1} {"a": 1}]', "no whole JSON document"),
        ('[{"a": 1}] 2', "more text follows"),
        ('{"a": 1}\n{"a"', r"line 2 of talk.json is no whole JSON document .* truncated"),
        ('{\n "a": 1\n}', "One object over many lines is no list"),
        ("[" * 100_000, "nested too deeply"),
        ("<!DOCTYPE html><p>Sign in</p>", "is a web page"),
        ("PK\x03\x04zip", "is a zip archive"),
        ("PAR1 and no more", "no readable Parquet"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_text_that_is_no_utf8_and_gzip_that_breaks_off_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    for content, said in (
        (b'["\xff\xfe"]', "is no UTF-8 text"),
        ("[]".encode("utf-16"), "UTF-16"),
        ("[]".encode("utf-16-le"), "is no UTF-8 text"),
        ("[]".encode("utf-32"), "UTF-32"),
        (b"ARROW1\0\0", "Write it as Parquet"),
        (b"\x28\xb5\x2f\xfd", "packed by zstd"),
        (gzip.compress(json.dumps([GOOD] * 50).encode())[:80], "is no whole gzip file"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read(path)


def test_gzip_that_grows_beyond_the_limit_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 50_000_000 + b"]"))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"unpacks to more than 1,000,000 bytes"):
        read(path, max_bytes=1_000_000)


def test_a_long_list_is_never_in_memory_whole(tmp_path: Path) -> None:
    value = [entry(("human", "word " * 200), ("gpt", "x")) for _ in range(20_000)]
    for content in (json.dumps(value), "\n".join(json.dumps(item) for item in value)):
        path = written(tmp_path, content)
        assert path.stat().st_size > 20_000_000
        tracemalloc.start()
        try:
            assert sum(1 for _ in formats.read(path, "talk.json")) == 20_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 12_000_000


# Layouts


def test_the_image_stands_where_its_tag_stands(tmp_path: Path) -> None:
    value = [
        entry(("human", "What is\n<image>?"), ("gpt", "A cat."), image="a.jpg"),
        entry(("human", "What?"), ("gpt", "A cat."), image="a.jpg"),  # first, as in LLaVA
        entry(("human", "Hi"), ("gpt", "Hello")),
        {**entry(("human", "Hi"), ("gpt", "Hello")), "image": "", "model": ""},
    ]
    found = right(written(tmp_path, value))
    assert [item.turns[0].text for item in found] == ["What is\n<image>?", "<image>\nWhat?", "Hi", "Hi"]
    assert [item.image for item in found] == ["a.jpg", "a.jpg", None, None]


@pytest.mark.parametrize("image", ["a.jpg", ["a.jpg"], "./a.jpg", ["a.jpg", "a.jpg"]])
@pytest.mark.parametrize("field", ["image", "images"])
def test_one_image_is_one_image_however_it_is_named(image: Any, field: str, tmp_path: Path) -> None:
    value = {key: part for key, part in GOOD.items() if key != "image"}
    (found,) = right(written(tmp_path, [{**value, field: image}]))
    assert (found.image, found.turns) == ("a.jpg", TALK)


def test_turns_are_read_as_tables_hold_them(tmp_path: Path) -> None:
    """A list of structs becomes two lists in some writers of `datasets`, and JSON in a text in many exports."""
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    columns = {"from": ["human", "gpt"], "value": ["<image>\nWhat?", "A cat."]}
    stored = {"bytes": PHOTO, "path": None}
    for number, turns in enumerate((columns, json.dumps(said))):
        (row,) = formats.read(parquet(tmp_path / f"{number}", [{"image": stored, "conversations": turns}]), "table")
        assert isinstance(row.read, Conversation), row
        assert (row.read.turns, row.picture) == (TALK, PHOTO)


def test_an_empty_picture_of_a_table_is_no_picture(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"image": {"bytes": None, "path": None}, "conversations": said}]
    schema = pa.schema(
        [("image", IMAGE), ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])))]
    )
    (row,) = formats.read(parquet(tmp_path / "table", rows, schema), "table")
    assert isinstance(row.read, Conversation)
    assert row.read.image is None


def test_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    """Such as times that Python has no date for."""
    path = tmp_path / "table"
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    pq.write_table(pa.table({"made": pa.array([2**62], pa.timestamp("us")), "conversations": [said]}), path)
    assert len(right(path)) == 1
    with pytest.raises(InputError, match=r"has the columns made, conversations and none of dialogue, messages, texts"):
        right(path, columns={"conversations": "dialogue"})


def test_base64_may_have_lines_and_a_capital_scheme(tmp_path: Path) -> None:
    packed = f"DATA:image/jpeg;BASE64,{base64.encodebytes(PHOTO).decode()}"
    (row,) = formats.read(written(tmp_path, [{**GOOD, "image": packed}]), "talk")
    assert row.picture == PHOTO


def test_an_object_without_turns_is_told_by_what_it_has(tmp_path: Path) -> None:
    (fault,) = read(written(tmp_path, json.dumps({"train": [GOOD], "test": []})))
    assert isinstance(fault, formats.Fault)
    assert fault.reason == "has none of conversations, messages, texts, but train, test"


def test_openai_messages_are_read_like_the_others(tmp_path: Path) -> None:
    asked = [{"type": "image_url", "image_url": {"url": "https://host/a.jpg"}}, {"type": "text", "text": "What?"}]
    packed = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
    inside = [{"type": "image_url", "image_url": {"url": packed}}, {"type": "text", "text": "What?"}]
    answer = {"role": "assistant", "content": "A cat."}
    value = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}, answer]},
        {"messages": [{"role": "user", "content": "<image>\nWhat?"}, answer], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": inside}, answer]},
    ]
    path = written(tmp_path, value)
    first, second, third = right(path)
    assert first.turns == [Turn("user", "Be brief.\n\n<image>\nWhat?"), TALK[1]]
    assert second.turns == third.turns == TALK
    assert (first.id, first.image, second.image, third.image) == ("0", "https://host/a.jpg", "a.jpg", f"{NAMED}image")
    assert [row.picture for row in formats.read(path, "talk")] == [None, None, PHOTO]


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PART = pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())])
MESSAGE = pa.struct([("content", pa.list_(PART)), ("role", pa.string())])
VSFT = pa.schema([("messages", pa.list_(MESSAGE)), ("images", pa.list_(IMAGE))])  # as its dataset card has it
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]))


def test_published_parquet_layouts_are_read_with_their_pictures(tmp_path: Path) -> None:
    stored = {"bytes": PHOTO, "path": "train/000000310196.jpg"}
    asked = [{"index": None, "text": "What?", "type": "text"}, {"index": 0, "text": None, "type": "image"}]
    answer = [{"index": None, "text": "A cat.", "type": "text"}]
    vsft = [{"messages": [{"content": asked, "role": "user"}, {"content": answer, "role": "assistant"}]}]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    pair = [{"user": "What?", "assistant": "A cat.", "source": "x"}]
    layouts = {
        "llava-instruct-mix-vsft": parquet(tmp_path / "a.parquet", [{**vsft[0], "images": [stored]}], VSFT),
        "LLaVA-OneVision": parquet(tmp_path / "b.parquet", [{"id": "one", "image": stored, "conversations": said}]),
        "The Cauldron, FineVision": parquet(tmp_path / "c.parquet", [{"images": [stored], "texts": pair}]),
    }
    for name, path in layouts.items():
        (row,) = formats.read(path, name)
        assert isinstance(row.read, Conversation), row
        assert row.picture == PHOTO
        assert row.read.image == f"{NAMED}000000310196.jpg"
        wanted = "What?\n<image>" if "vsft" in name else "<image>\nWhat?"
        assert row.read.turns == [Turn("user", wanted), TALK[1]], name


def test_several_questions_of_the_cauldron_are_turns_and_text_alone_is_text(tmp_path: Path) -> None:
    pairs = [{"user": f"Q{number}", "assistant": f"A{number}"} for number in range(2)]
    schema = pa.schema([("images", pa.list_(IMAGE)), ("texts", TEXTS)])
    rows = [{"images": [{"bytes": PHOTO, "path": None}], "texts": pairs}, {"images": None, "texts": pairs}]
    seen, said = right(parquet(tmp_path / "a.parquet", rows, schema))
    assert [turn.text for turn in seen.turns] == ["<image>\nQ0", "A0", "Q1", "A1"]
    assert (seen.image, said.image) == (f"{NAMED}image", None)


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    value = [{"key": "k1", "picture": "a.jpg", "dialog": GOOD["conversations"], "image": "wrong.jpg"}]
    columns = {"id": "key", "image": "picture", "conversations": "dialog"}
    (found,) = right(written(tmp_path, value), columns=columns)
    assert (found.id, found.image, found.turns) == ("k1", "a.jpg", TALK)


# Faults


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ("text", "no-conversation", "is a JSON text"),
        (entry(image="a.jpg"), "no-turns", "has no turns"),
        ({"id": 7, "image": "a.jpg"}, "no-turns", "has none of conversations, messages, texts, but id, image"),
        (entry(("human", "hi"), ("robot", "ho")), "unknown-speaker", "unknown speaker 'robot' in turn 1"),
        (entry(("developer", "be"), ("human", "hi"), ("gpt", "ho")), "unknown-speaker", "'developer' in turn 0"),
        (entry(("human", "<image> <image>"), ("gpt", "x"), image="a.jpg"), "image-tags", "2 image tags"),
        (entry(("human", "<image>"), ("gpt", "x"), ("human", "<image>"), image="a.jpg"), "image-tags", "2 image tags"),
        (entry(("human", "<image>"), ("gpt", "x")), "no-image", "names no image"),
        (entry(("human", "hi"), ("gpt", "<image>"), image="a.jpg"), "tag-in-answer", "in an answer"),
        (entry(("gpt", "x"), ("human", "<image>"), image="a.jpg"), "order", "does not start with a user"),
        (entry(("human", "a"), ("human", "b")), "order", "does not alternate user and assistant at turn 1"),
        (entry(("human", "a"), ("gpt", "b"), image=["a.jpg", "b.jpg"]), "several-images", "2 images"),
        (entry(("human", "a"), ("gpt", "b"), image=7), "image-field", "a JSON number"),
        (entry(("human", "a"), ("gpt", "b"), image="data:image/png;base64,???"), "image-field", "no whole base64"),
        ({"id": "one", "conversations": [{"from": "human"}]}, "no-text", "turn 0 without"),
        (entry(("human", "half \ud83d"), ("gpt", "b")), "surrogate", "half of a character"),
        (entry(("human", "a"), ("gpt", "b"), image="\ud83d.jpg"), "surrogate", "half of a character"),
    ],
)
def test_what_breaks_the_format_is_a_fault_with_a_reason(tmp_path: Path, value: Any, kind: str, said: str) -> None:
    found = read(written(tmp_path, [GOOD, value, GOOD]))
    assert [isinstance(item, Conversation) for item in found] == [True, False, True]
    fault = found[1]
    assert isinstance(fault, formats.Fault)
    assert (fault.index, fault.kind) == (1, kind)
    assert said in fault.reason
    fault.id.encode("utf-8")
    fault.reason.encode("utf-8")


def test_absurd_numbers_and_nesting_are_faults_of_their_row(tmp_path: Path) -> None:
    huge = json.dumps(GOOD).replace('"one"', "1" * 5000)
    deep = '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}"
    found = read(written(tmp_path, "\n".join([json.dumps(GOOD), huge, deep, json.dumps(GOOD).replace('"one"', "NaN")])))
    assert [item.kind for item in found if isinstance(item, formats.Fault)] == ["absurd", "absurd", "absurd"]
    assert len(found) == 4


def test_a_path_in_a_row_cannot_choose_where_a_picture_goes() -> None:
    assert embedded_name(PHOTO, "../../etc/pass wd\n.jpg") == f"{NAMED}passwd.jpg"
    assert embedded_name(PHOTO, "C:\\pics\\..") == f"{NAMED}image"
    assert embedded_name(PHOTO, None) == f"{NAMED}image"
