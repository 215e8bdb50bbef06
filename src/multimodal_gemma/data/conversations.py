"""A conversation about an image, and the file of them in a raw dataset.

`conversations.jsonl` holds what is to be learnt, checked and chosen: one JSON object a line in LLaVA's form, `{"id",
"set", "image" (absent: text only), "conversations": [{"from": "human" | "gpt", "value"}, …]}`. How published files are
read into it is `formats`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

FILE = "conversations.jsonl"  # of a raw-dataset artifact
SETS = "sets.json"  # beside it: what became of each set's conversations
IMAGE_TAG = "<image>"
Role = Literal["user", "assistant"]
_SPEAKERS: dict[Role, str] = {"user": "human", "assistant": "gpt"}
_ROLES: dict[str, Role] = {speaker: role for role, speaker in _SPEAKERS.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says.

    Attributes:
        role: "user" or "assistant".
        text: as published; `<image>` marks where the image stands.
    """

    role: Role
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """One training sample.

    Attributes:
        id: as published; several conversations may share one.
        image: a name of the image in the shards; None: text only.
        turns: user and assistant by turns, the user first. With an image exactly one user turn holds `<image>`, once.
        set: name of the set that it comes from.
    """

    id: str
    image: str | None
    turns: list[Turn]
    set: str = ""


def load(raw: Path) -> list[Conversation]:
    """Read what a raw-dataset artifact holds to be learnt.

    Raises:
        InputError: the folder holds no such file.
    """
    rows = files.read_jsonl(raw / FILE, "conversations")
    try:
        return [from_row(row) for row in rows]
    except (KeyError, TypeError):
        raise InputError(f"conversations: {raw / FILE} is not what download writes. Download again.") from None


def write(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as a raw-dataset artifact holds them."""
    with files.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for item in conversations:
            stream.write(json.dumps(to_row(item), ensure_ascii=False) + "\n")


def from_row(row: dict[str, Any]) -> Conversation:
    """Return the conversation of one line; KeyError or TypeError if it is none."""
    turns = [Turn(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]
    return Conversation(row["id"], row.get("image"), turns, row["set"])


def to_row(item: Conversation) -> dict[str, Any]:
    """Return the line of one conversation."""
    said = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in item.turns]
    image = {} if item.image is None else {"image": item.image}
    return {"id": item.id, "set": item.set, **image, "conversations": said}


def image_names(conversations: Iterable[Conversation]) -> list[str]:
    """Return the distinct image names that conversations ask for, ascending."""
    return sorted({conversation.image for conversation in conversations if conversation.image is not None})


def image_first(conversation: Conversation) -> Conversation:
    """Return a conversation whose first turn begins with its image, if the image stands in that turn.

    LLaVA's own trainer does so with every conversation, and evaluation asks in this order; published conversations
    often have the image behind the question.
    """
    first = conversation.turns[0]
    if IMAGE_TAG not in first.text or first.text.startswith(IMAGE_TAG):
        return conversation
    words = first.text.replace(IMAGE_TAG, "").strip()
    turns = [Turn(first.role, f"{IMAGE_TAG}\n{words}"), *conversation.turns[1:]]
    return dataclasses.replace(conversation, turns=turns)
