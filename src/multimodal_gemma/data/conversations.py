"""Conversations about images, in the formats that datasets are published in.

One JSON list; each entry has an id, the file name of its image (none: text only) and turns that alternate between user
and assistant. LLaVA, ShareGPT and ShareGPT4V write {"from": "human", "value"} under "conversations"; OpenAI's format
writes {"role": "user", "content"} under "messages". The tag `<image>` in a user's turn says where the image stands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files
from multimodal_gemma.data import json_list
from multimodal_gemma.errors import InputError

IMAGE_TAG = "<image>"
Role = Literal["user", "assistant"]
_ROLES: dict[Any, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SPEAKERS = {"user": "human", "assistant": "gpt"}
FILE = "conversations.jsonl"  # of a raw-dataset artifact
_SYSTEM = "system"  # a first turn of this speaker is put before the first question


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
        set: name of the dataset that it comes from.
    """

    id: str
    image: str | None
    turns: list[Turn]
    set: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A conversation that breaks the format.

    Attributes:
        index: its place in the file.
        id: as published, else the index.
        kind: the reason as a word to count by, e.g. "unknown-speaker".
        reason: the reason in words.
    """

    index: int
    id: str
    kind: str
    reason: str


def load(raw: Path) -> list[Conversation]:
    """Read what a raw-dataset artifact holds to be learnt: checked and chosen conversations.

    Raises:
        InputError: the folder holds no such file.
    """
    rows = files.read_jsonl(raw / FILE, "conversations")
    try:
        return [_loaded(row) for row in rows]
    except (KeyError, TypeError):
        raise InputError(
            f"conversations: {raw / FILE} was not written by download. Download the dataset again."
        ) from None


def write(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as a raw-dataset artifact holds them: one JSON object a line, in LLaVA's form."""
    with files.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for item in conversations:
            said = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in item.turns]
            image = {} if item.image is None else {"image": item.image}
            row = {"id": item.id, "set": item.set, **image, "conversations": said}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _loaded(row: dict[str, Any]) -> Conversation:
    turns = [Turn(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]
    return Conversation(row["id"], row.get("image"), turns, row["set"])


def parse(path: Path) -> list[Conversation]:
    """Read a file of conversations, each of which must be right; see `parse_counted`."""
    return parse_counted(path, 0.0)[0]


def parse_counted(path: Path, max_faulty_fraction: float) -> tuple[list[Conversation], list[Fault]]:
    """Read a file of conversations.

    Args:
        path: a JSON list of {"id", "image"?, "conversations": [{"from", "value"}]} or {"messages": [{"role",
            "content"}]}.
        max_faulty_fraction: share of the conversations that may be faulty.

    Returns:
        The right conversations in their order, and the faulty ones. An image without a tag is put before the first
        turn, as LLaVA does.

    Raises:
        InputError: the file is no such list, all conversations are faulty, or more than allowed are; the sentence
            names the first one by index and id.
    """
    right, faults = [], []
    try:
        for index, entry in enumerate(json_list.items(path, "conversations")):
            try:
                right.append(_conversation(entry, index))
            except _Faulty as faulty:
                identity = str(entry.get("id", index)) if isinstance(entry, dict) else str(index)
                faults.append(Fault(index, identity, faulty.kind, faulty.reason))
    except json_list.NotAList as other:
        raise InputError(
            f"conversations: {path} holds a JSON {_kind(other.value)}, not a list of conversations. "
            "Give a file in the format of LLaVA-Instruct."
        ) from None
    count = len(right) + len(faults)
    if not count:
        raise InputError(f"conversations: {path} is an empty list. Give at least one conversation.")
    if faults and (not right or len(faults) / count > max_faulty_fraction):
        raise _too_faulty(path, faults, count, max_faulty_fraction)
    return right, faults


def _too_faulty(path: Path, faults: list[Fault], count: int, allowed: float) -> InputError:
    first = faults[0]
    where = f"conversation {first.index} (id {first.id}) of {path} {first.reason}"
    if len(faults) == 1:
        return InputError(f"conversations: {where}. Correct or remove it.")
    return InputError(
        f"conversations: {where}, and {len(faults) - 1:,} more of {count:,} are faulty ({len(faults) / count:.2%}, "
        f"allowed {allowed:.2%}). Correct them, or leave them out with data.max_faulty_fraction."
    )


def image_names(conversations: list[Conversation]) -> list[str]:
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


class _Faulty(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason


def _conversation(entry: Any, index: int) -> Conversation:
    if not isinstance(entry, dict):
        raise _Faulty("no-conversation", f"is a JSON {_kind(entry)}, no conversation")
    said = entry.get("conversations", entry.get("messages"))
    image = entry.get("image") or _image_of(entry.get("images"), said)
    if image is not None and not isinstance(image, str):
        raise _Faulty("image-field", f"has an image field that is a JSON {_kind(image)}, not one file name")
    if not isinstance(said, list) or not said:
        raise _Faulty("no-turns", "has no turns")
    turns = _turns(said)
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            rule = f"does not alternate user and assistant at turn {number}" if number else "does not start with a user"
            raise _Faulty("order", rule)
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if tags > 1:
        raise _Faulty("image-tags", f"has {tags} image tags; one image stands in one place")
    if tags and image is None:
        raise _Faulty("no-image", f"has the image tag {IMAGE_TAG} but names no image")
    if any(IMAGE_TAG in turn.text for turn in turns if turn.role == "assistant"):
        raise _Faulty("tag-in-answer", f"has the image tag {IMAGE_TAG} in an answer; it belongs in a user's turn")
    if image is not None and not tags:
        turns[0] = Turn("user", f"{IMAGE_TAG}\n{turns[0].text}")
    return Conversation(str(entry.get("id", index)), image, turns)


def _image_of(images: Any, said: Any) -> Any:
    """Return what a conversation names in a list of images or, as OpenAI's format does, inside a turn."""
    found = list(images) if isinstance(images, list) else []
    for turn in said if isinstance(said, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            named = part.get("image_url", part.get("image")) if isinstance(part, dict) else None
            named = named.get("url") if isinstance(named, dict) else named
            if named is not None:
                found.append(named)
    return (found[0] if len(found) == 1 else found) or None


def _turns(said: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    system = ""
    for number, turn in enumerate(said):
        text = _text(turn.get("value", turn.get("content"))) if isinstance(turn, dict) else None
        if text is None:
            raise _Faulty("no-text", f'has a turn {number} without "from" and "value" (or "role" and "content") texts')
        speaker = turn.get("from", turn.get("role"))
        if number == 0 and speaker == _SYSTEM and len(said) > 1:
            system = text.strip()
            continue
        if not isinstance(speaker, str) or speaker not in _ROLES:
            known = "human, gpt, user and assistant are known"
            raise _Faulty("unknown-speaker", f"has an unknown speaker {speaker!r} in turn {number}; {known}")
        turns.append(Turn(_ROLES[speaker], text))
    if system:
        turns[0] = Turn(turns[0].role, f"{system}\n\n{turns[0].text}")
    return turns


def _text(content: Any) -> str | None:
    """Return a turn's text; of a list of parts, its texts with a tag where an image stands."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            pieces.append(IMAGE_TAG)
        elif kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        else:
            return None
    return "\n".join(pieces)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
