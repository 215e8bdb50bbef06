"""LLaVA JSON: what is right is read as LLaVA reads it, what is wrong gets one sentence that finds the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.data.conversations import Conversation, Turn, image_first, image_names, parse, parse_counted
from multimodal_gemma.errors import InputError


def entry(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"id": "one", **fields, "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


GOOD = entry(("human", "<image>\nWhat?"), ("gpt", "A cat."), image="a.jpg")


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "conversations.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_the_photograph_sample_is_read_whole(shared: Path) -> None:
    conversations = parse(shared / "coco-sample" / "llava_instruct_sample.json")
    assert len(conversations) == 72
    assert len(image_names(conversations)) == 36
    first = conversations[0]
    assert (first.id, first.image) == ("000000005802", "000000005802.jpg")
    assert first.turns[3] == Turn("assistant", "7")


def test_the_image_stands_where_its_tag_stands(tmp_path: Path) -> None:
    value = [entry(("human", "What is\n<image>?"), ("gpt", "A cat."), image="a.jpg")]
    (conversation,) = parse(written(tmp_path, value))
    assert conversation.turns[0].text == "What is\n<image>?"


def test_an_image_without_a_tag_stands_first_as_in_llava(tmp_path: Path) -> None:
    (conversation,) = parse(written(tmp_path, [entry(("human", "What?"), ("gpt", "A cat."), image="a.jpg")]))
    assert conversation.turns[0].text == "<image>\nWhat?"


def test_text_alone_is_a_conversation(tmp_path: Path) -> None:
    (conversation,) = parse(written(tmp_path, [entry(("human", "Hi"), ("gpt", "Hello"))]))
    assert conversation.image is None
    assert image_names([conversation]) == []


def test_several_conversations_may_share_an_id_and_an_image(tmp_path: Path) -> None:
    assert image_names(parse(written(tmp_path, [GOOD, GOOD]))) == ["a.jpg"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('[{"id": "one", "conv', "no whole JSON document"),
        ({"id": "one"}, "holds a JSON object, not a list"),
        ([], "empty list"),
        (["text"], "conversation 0 .* is a JSON text"),
        ([GOOD, entry(image="a.jpg")], r"conversation 1 \(id one\) .* no turns"),
        ([{"id": 7, "image": "a.jpg"}], r"conversation 0 \(id 7\) .* no turns"),
        ([entry(("human", "hi"), ("robot", "ho"))], "unknown speaker 'robot' in turn 1"),
        ([entry(("human", "<image> <image>"), ("gpt", "x"), image="a.jpg")], "2 image tags"),
        ([entry(("human", "<image>"), ("gpt", "x"), ("human", "<image>"), image="a.jpg")], "2 image tags"),
        ([entry(("human", "<image>"), ("gpt", "x"))], "names no image"),
        ([entry(("human", "hi"), ("gpt", "<image>"), image="a.jpg")], "image tag <image> in an answer"),
        ([entry(("gpt", "x"), ("human", "<image>"), image="a.jpg")], "does not start with a user"),
        ([entry(("human", "a"), ("human", "b"))], "does not alternate user and assistant at turn 1"),
        ([entry(("human", "a"), ("gpt", "b"), image=["a.jpg", "b.jpg"])], "not one file name"),
        ([{"id": "one", "conversations": [{"from": "human"}]}], "turn 0 without"),
    ],
)
def test_a_faulty_file_is_one_sentence_that_names_the_place(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse(written(tmp_path, value))
    assert "\n" not in str(caught.value)


def test_openai_messages_are_read_like_the_others(tmp_path: Path) -> None:
    asked = [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "What?"}]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "A cat."},
    ]
    named = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]
    first, second = parse(written(tmp_path, [{"messages": talk}, {"messages": named, "images": ["a.jpg"]}]))
    assert first.turns == [Turn("user", "Be brief.\n\n<image>\nWhat?"), Turn("assistant", "A cat.")]
    assert second.turns == [Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")]
    assert (first.id, first.image, second.image) == ("0", "a.jpg", "a.jpg")


def test_the_mix_of_llava_15_is_read_with_its_roots_and_its_text_only_rows(tmp_path: Path) -> None:
    value = [
        {**GOOD, "image": "coco/train2017/000000033471.jpg", "model": ""},
        {**GOOD, "image": "vg/VG_100K_2/1.jpg"},
        {**entry(("human", "Hi"), ("gpt", "Hello")), "id": "wgByO4Y_0", "model": ""},
    ]
    found = parse(written(tmp_path, value))
    assert [item.image for item in found] == ["coco/train2017/000000033471.jpg", "vg/VG_100K_2/1.jpg", None]


def test_faulty_conversations_are_set_aside_up_to_a_share(tmp_path: Path) -> None:
    path = written(tmp_path, [GOOD, GOOD, GOOD, entry(("robot", "beep"), image="b.jpg")])
    right, faults = parse_counted(path, 0.25)
    assert len(right) == 3
    assert [(fault.index, fault.kind) for fault in faults] == [(3, "unknown-speaker")]
    with pytest.raises(InputError, match="unknown speaker 'robot'"):
        parse_counted(path, 0.2)
    with pytest.raises(InputError, match="conversation 0 .* and 1 more of 2 are faulty"):
        parse_counted(written(tmp_path, [{}, {}]), 1.0)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parse(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("What is it?\n<image>", "<image>\nWhat is it?"),  # as LLaVA's trainer puts it
        ("What <image> is it?", "<image>\nWhat  is it?"),
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
    ],
)
def test_the_image_of_the_first_turn_comes_first(published: str, expected: str) -> None:
    turns = [Turn("user", published), Turn("assistant", "A cat.")]
    placed = image_first(Conversation("one", "a.jpg", turns))
    assert [turn.text for turn in placed.turns] == [expected, "A cat."]


def test_an_image_of_a_later_turn_stays_there() -> None:
    turns = [
        Turn("user", "Hello"),
        Turn("assistant", "Hi."),
        Turn("user", "<image> What?"),
        Turn("assistant", "A cat."),
    ]
    conversation = Conversation("one", "a.jpg", turns)
    assert image_first(conversation) is conversation
