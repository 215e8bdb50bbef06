"""A conversation's rows in a raw dataset, and where its image stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from multimodal_gemma.data import conversations
from multimodal_gemma.data.conversations import Conversation, Turn, image_first, image_names


def test_what_is_written_is_read_again_whatever_characters_it_holds(tmp_path: Path) -> None:
    odd = "line\u0085and\u2028separator, \u000b \x1c and a newline\n\U0001f408"
    kept = [
        Conversation("one", "a.jpg", [Turn("user", f"<image>\n{odd}"), Turn("assistant", odd)], "set"),
        Conversation(odd, None, [Turn("user", "Hi"), Turn("assistant", "Hello")]),
    ]
    conversations.write(tmp_path / conversations.FILE, kept)
    assert conversations.load(tmp_path) == kept
    assert image_names(kept) == ["a.jpg"]


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
