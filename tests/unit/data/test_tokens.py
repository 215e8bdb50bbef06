"""What is learnt: the assistant's words and their end of turn, nothing else, wherever the image stands."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.data.conversations import Conversation, Turn
from multimodal_gemma.data.prepare import save_processor
from multimodal_gemma.data.tokens import Tokenized, Tokenizer
from multimodal_gemma.errors import Unusable
from tests.unit.data import making


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A processor and the folder that it was saved in."""
    folder = tmp_path_factory.mktemp("tokenize")
    processor, _ = save_processor(making.base_models(folder / "models"), folder / "processor")
    return processor, folder / "processor"


def tokenizer(saved: tuple[Any, Path], limit: int = 1024) -> Tokenizer:
    return Tokenizer(saved[1], "test", limit)


def talk(*texts: str, image: str | None = "1.jpg") -> Conversation:
    roles = ("user", "assistant")
    return Conversation("one", image, [Turn(roles[number % 2], text) for number, text in enumerate(texts)])


def supervised_runs(processor: Any, tokenized: Tokenized) -> list[str]:
    """Decode each unbroken run of supervised tokens."""
    pairs = zip(tokenized.input_ids, tokenized.supervised, strict=True)
    runs = [(mark, [token for token, _ in run]) for mark, run in groupby(pairs, key=lambda pair: pair[1])]
    return [processor.tokenizer.decode(tokens) for mark, tokens in runs if mark]


def gemma_text(turns: list[Turn]) -> str:
    """Gemma's turns, written by hand from its documentation."""
    names = {"user": "user", "assistant": "model"}
    return "<bos>" + "".join(f"<start_of_turn>{names[turn.role]}\n{turn.text}<end_of_turn>\n" for turn in turns)


def test_exactly_the_answers_and_their_ends_of_turn_are_learnt(saved: tuple[Any, Path], shared: Path) -> None:
    processor, _ = saved
    for conversation in making.published(shared / "coco-sample" / "llava_instruct_sample.json"):
        tokenized = tokenizer(saved)(conversation)
        answers = [turn.text + "<end_of_turn>" for turn in conversation.turns if turn.role == "assistant"]
        assert supervised_runs(processor, tokenized) == answers
        assert processor.tokenizer.decode(tokenized.input_ids) == gemma_text(conversation.turns)
        assert tokenized.input_ids.count(processor.image_token_id) == 1
        assert tokenized.turns == len(conversation.turns)


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "Look: <image> What is it?"])
def test_the_image_stands_where_the_text_says(saved: tuple[Any, Path], question: str) -> None:
    """What stands behind it begins on a line of its own, as in every prompt."""
    processor, _ = saved
    ids = tokenizer(saved)(talk(question, "A cat.")).input_ids
    before, after = question.split("<image>")
    behind = f"\n{after.strip()}" if after else ""
    place = ids.index(processor.image_token_id)
    assert processor.tokenizer.decode(ids[:place]) == f"<bos><start_of_turn>user\n{before}"
    assert processor.tokenizer.decode(ids[place + 1 :]).startswith(f"{behind}<end_of_turn>")


def test_an_image_in_a_later_turn_stays_there(saved: tuple[Any, Path]) -> None:
    conversation = talk("Hello.", "Hello.", "<image>\nWhat is it?", "A cat.")
    ids = tokenizer(saved)(conversation).input_ids
    assert ids.count(saved[0].image_token_id) == 1
    assert ids.index(saved[0].image_token_id) > len(ids) // 3


def test_ids_are_those_of_the_stock_processor_with_its_image_expanded(saved: tuple[Any, Path]) -> None:
    """What training reads is what the exported model's own processor makes of the same conversation."""
    from PIL import Image

    processor, _ = saved
    said = talk("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")
    ours = tokenizer(saved)(said).input_ids
    content = [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    stock = processor(text=text, images=Image.new("RGB", (56, 56)), add_special_tokens=False).input_ids[0]
    place = ours.index(processor.image_token_id)
    assert list(stock) == [*ours[:place], *[processor.image_token_id] * 16, *ours[place + 1 :]]


def test_text_without_an_image_is_a_conversation_too(saved: tuple[Any, Path]) -> None:
    tokenized = tokenizer(saved)(talk("Hello.", "Hello.", image=None))
    assert saved[0].image_token_id not in tokenized.input_ids
    assert supervised_runs(saved[0], tokenized) == ["Hello.<end_of_turn>"]


def test_a_long_conversation_is_cut_by_whole_pairs_and_no_further_than_needed(saved: tuple[Any, Path]) -> None:
    turns = [f"Question {number}?" if number % 2 == 0 else "A long answer of many words." for number in range(12)]
    conversation = talk("<image>\n" + turns[0], *turns[1:])
    whole = tokenizer(saved)(conversation)
    for limit in range(20, len(whole.input_ids) + 2):
        try:
            cut = tokenizer(saved, limit)(conversation)
        except Unusable:
            continue
        assert cut.turns % 2 == 0
        assert cut.input_ids == whole.input_ids[: len(cut.input_ids)]
        assert len(cut.input_ids) - 1 <= limit  # the image's placeholder is no text token
        longer = tokenizer(saved)(talk(*[turn.text for turn in conversation.turns[: cut.turns + 2]]))
        assert cut.turns == 12 or len(longer.input_ids) - 1 > limit
    assert tokenizer(saved, len(whole.input_ids) - 1)(conversation) == whole


def test_a_last_question_without_an_answer_is_left_out(saved: tuple[Any, Path]) -> None:
    tokenized = tokenizer(saved)(talk("<image>\nWhat is it?", "A cat.", "Sure?"))
    assert tokenized.turns == 2
    assert supervised_runs(saved[0], tokenized) == ["A cat.<end_of_turn>"]


@pytest.mark.parametrize(
    ("conversation", "limit", "kind"),
    [
        (talk("<image>\nWhat is it?"), 1024, "no-answer"),
        (talk("<image>\nWhat is it?", "  "), 1024, "no-answer"),
        (talk("<image>\nWhat is it?", "A cat. " * 100), 50, "too-long"),
        (talk("Hello.", "Hello.", "<image>\nWhat?", "A cat. " * 100), 50, "image-cut"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_its_reason(
    saved: tuple[Any, Path], conversation: Conversation, limit: int, kind: str
) -> None:
    with pytest.raises(Unusable) as caught:
        tokenizer(saved, limit)(conversation)
    assert caught.value.kind == kind


def test_the_saved_processor_is_a_stock_one(saved: tuple[Any, Path]) -> None:
    config = json.loads((saved[1] / "processor_config.json").read_text())
    assert config["processor_class"] == "LlavaProcessor"
