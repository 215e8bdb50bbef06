"""Conversations about images, in the format that LLaVA-Instruct is published in.

One JSON list; each entry has an id, the file name of its image (none: text only) and turns that alternate between
`human` and `gpt`. The tag `<image>` in a human turn says where the image stands.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

IMAGE_TAG = "<image>"
Role = Literal["user", "assistant"]
_ROLES: dict[Any, Role] = {"human": "user", "gpt": "assistant"}


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
        image: file name of the image, as the conversation names it; None: text only.
        turns: user and assistant by turns, the user first. With an image exactly one user turn holds `<image>`, once.
    """

    id: str
    image: str | None
    turns: list[Turn]


def parse(path: Path) -> list[Conversation]:
    """Read a LLaVA JSON file.

    Args:
        path: a JSON list of {"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}.

    Returns:
        The conversations in their order. An image without a tag is put before the first turn, as LLaVA does.

    Raises:
        InputError: the file is no such list; the sentence names the first conversation at fault by index and id.
    """
    entries = files.read_json(path, "conversations")
    if not isinstance(entries, list):
        raise InputError(
            f"conversations: {path} holds a JSON {_kind(entries)}, not a list of conversations. "
            "Give a file in the format of LLaVA-Instruct."
        )
    if not entries:
        raise InputError(f"conversations: {path} is an empty list. Give at least one conversation.")
    return [_conversation(entry, index, path) for index, entry in enumerate(entries)]


def image_names(conversations: list[Conversation]) -> list[str]:
    """Return the distinct image names that conversations ask for, ascending."""
    return sorted({conversation.image for conversation in conversations if conversation.image is not None})


def _conversation(entry: Any, index: int, path: Path) -> Conversation:
    if not isinstance(entry, dict):
        raise InputError(
            f"conversations: entry {index} of {path} is a JSON {_kind(entry)}, no conversation. Correct or remove it."
        )
    identity = str(entry.get("id", index))

    def fault(text: str) -> InputError:
        return InputError(f"conversations: conversation {index} (id {identity}) of {path} {text} Correct or remove it.")

    image = entry.get("image") or None
    if image is not None and not isinstance(image, str):
        raise fault(f"has an image field that is a JSON {_kind(image)}, not one file name.")
    said = entry.get("conversations")
    if not isinstance(said, list) or not said:
        raise fault("has no turns.")
    turns = []
    for number, turn in enumerate(said):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise fault(f'has a turn {number} without "from" and "value" texts.')
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise fault(f"has an unknown speaker {speaker!r} in turn {number}; human and gpt are known.")
        turns.append(Turn(_ROLES[speaker], turn["value"]))
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            rule = f"does not alternate human and gpt at turn {number}." if number else "does not start with human."
            raise fault(rule)
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if tags > 1:
        raise fault(f"has {tags} image tags; one image stands in one place.")
    if tags and image is None:
        raise fault(f"has the image tag {IMAGE_TAG} but names no image.")
    if any(IMAGE_TAG in turn.text for turn in turns if turn.role == "assistant"):
        raise fault(f"has the image tag {IMAGE_TAG} in an answer; it belongs in a human turn.")
    if image is not None and not tags:
        turns[0] = Turn("user", f"{IMAGE_TAG}\n{turns[0].text}")
    return Conversation(identity, image, turns)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
