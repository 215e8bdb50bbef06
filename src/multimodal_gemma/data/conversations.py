"""A conversation about an image: as people publish it, and in the file of them in a raw dataset.

`conversations.jsonl` holds what is to be learnt, checked and chosen: one JSON object a line in LLaVA's form, `{"id",
"set", "image" (absent: text only), "conversations": [{"from": "human" | "gpt", "value"}, …]}`. Rows in other layouts
are read into it by `parse`; their files by `formats`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files
from multimodal_gemma.errors import InputError, Unusable

FILE = "conversations.jsonl"  # of a raw-dataset artifact
SETS = "sets.json"  # beside it: what became of each set's conversations
IMAGE_TAG = "<image>"
EMBEDDED = "embedded/"  # begins the name of a picture that stands in the file of conversations itself
TURNS = ("conversations", "messages", "texts")  # of what a published row is known by
COLUMNS = ("id", "image", "images", *TURNS)
Role = Literal["user", "assistant"]
_SPEAKERS: dict[Role, str] = {"user": "human", "assistant": "gpt"}
_ROLES: dict[str, Role] = {"human": "user", "user": "user"}
_ROLES |= dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant")
_DIGITS = 4_000  # of a number; Python itself refuses longer ones


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: Role  # "user" or "assistant"
    text: str  # as published; `<image>` marks where the image stands


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """One training sample."""

    id: str  # as published; several conversations may share one
    image: str | None  # a name of the image in the shards; None: text only
    turns: list[Turn]  # user and assistant by turns, the user first; with an image one user turn holds `<image>`, once
    set: str = ""  # name of the set that it comes from


class Absurd:
    """Stands where published JSON has a number of thousands of digits, none at all, or endless nesting."""


DECODER = json.JSONDecoder(
    parse_int=lambda text: int(text) if len(text) < _DIGITS else Absurd(), parse_constant=lambda _: Absurd()
)


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


def embedded_name(content: bytes, path: str | None) -> str:
    """Return the name of a picture that is known by its bytes; a COCO id in the path that it had stays in it."""
    last = str(path or "").replace("\\", "/").rpartition("/")[2]
    plain = "".join(letter for letter in last if letter.isalnum() or letter in "._-").strip(".")
    return f"{EMBEDDED}{hashlib.sha256(content).hexdigest()}/{plain or 'image'}"


def identity(entry: Any, index: int) -> str:
    """Return the id of a published row, its index where it has none."""
    found = entry.get("id", index) if isinstance(entry, dict) else index
    return _plain(found if isinstance(found, str | int) and not isinstance(found, bool) else index)


def _plain(value: Any) -> str:
    return str(value)[:200].encode("utf-8", "replace").decode("utf-8")


def parse(entry: Any, index: int) -> tuple[Conversation, bytes | None]:
    """Return the conversation of a published row, and its image's bytes where they stand in the row itself.

    Args:
        entry: LLaVA and ShareGPT (`conversations`: from, value), OpenAI and TRL (`messages`: role, content), The
            Cauldron and FineVision (`texts`: user, assistant). The image is `image` or `images`, or inside a message: a
            file name, an https address, a `data:` address, or its bytes as `datasets` embeds them.
        index: its place in the file, its id where it has none.

    Raises:
        Unusable: it breaks the format.
    """
    if isinstance(entry, Absurd):
        raise Unusable("absurd", "is nested too deeply")
    if not isinstance(entry, dict):
        raise Unusable("no-conversation", f"is a JSON {_kind(entry)}, no conversation")
    if isinstance(entry.get("id"), Absurd):
        raise Unusable("absurd", "has an id that is a number of thousands of digits, or no number")
    if entry and not any(key in entry for key in TURNS):
        raise Unusable("no-turns", f"has none of {', '.join(TURNS)}, but {listed(entry)}")
    said = _said(next((entry[key] for key in TURNS if entry.get(key) is not None), None))
    if not isinstance(said, list) or not said:
        raise Unusable("no-turns", "has no turns")
    turns = _turns(said)
    image, picture = _image(_images(entry, said))
    _check(turns, image)
    if image is not None and not any(IMAGE_TAG in turn.text for turn in turns):
        turns[0] = Turn("user", f"{IMAGE_TAG}\n{turns[0].text}")
    try:
        "".join((str(entry.get("id", "")), image or "", *(turn.text for turn in turns))).encode()
    except UnicodeEncodeError:
        raise Unusable("surrogate", "holds half of a character (a lone surrogate), which is no text") from None
    return Conversation(identity(entry, index), image, turns, _plain(entry.get("set") or "")), picture


def _said(value: Any) -> Any:
    """Return a list of turns also from what tables hold instead: JSON in a text, or a list for each part of a turn."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = DECODER.decode(value)
    if isinstance(value, dict):
        parts = list(value.values())
        if all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            return [dict(zip(value, turn, strict=True)) for turn in zip(*parts, strict=True)]
    return value


def listed(keys: Collection[str]) -> str:
    """Return the first few names of fields for a sentence."""
    shown = [key[:40].encode("ascii", "backslashreplace").decode() for key in list(keys)[:8]]
    return ", ".join([*shown, "…"] if len(keys) > len(shown) else shown) or "nothing"


def _turns(said: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    system = ""
    given: list[Any] = []
    for turn in said:
        if isinstance(turn, dict) and "user" in turn and "assistant" in turn:  # both in one, as in The Cauldron
            given += [{"role": role, "content": turn[role]} for role in ("user", "assistant")]
        else:
            given.append(turn)
    for number, turn in enumerate(given):
        text = _text(turn.get("value", turn.get("content"))) if isinstance(turn, dict) else None
        if text is None:
            raise Unusable("no-text", f'has a turn {number} without "from" and "value" (or "role" and "content") texts')
        speaker = turn.get("from", turn.get("role"))
        if number == 0 and speaker == "system" and len(given) > 1:
            system = text.strip()  # put before the first question
            continue
        role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            shown = repr(speaker)[:40].encode("ascii", "replace").decode()
            known = "human, gpt, user and assistant are known"
            raise Unusable("unknown-speaker", f"has an unknown speaker {shown} in turn {number}; {known}")
        turns.append(Turn(role, text))
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
        if kind in ("image", "image_url", "input_image"):
            pieces.append(IMAGE_TAG)
        elif kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        else:
            return None
    return "\n".join(pieces)


def _images(entry: dict[str, Any], said: list[Any]) -> list[Any]:
    """Return what a row names or holds as its images: in a field, a list, or inside a turn."""
    found: list[Any] = []
    for field in (entry.get("image"), entry.get("images")):
        found += field if isinstance(field, list) else [field]
    for turn in said:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            named = part.get("image_url", part.get("image")) if isinstance(part, dict) else None
            found.append(named.get("url") if isinstance(named, dict) and "url" in named else named)
    # A column of pictures has fields without a value in a row without a picture.
    given = [item for item in found if item not in (None, "") and (not isinstance(item, dict) or any(item.values()))]
    return [item for place, item in enumerate(given) if item not in given[:place]]


def _image(found: list[Any]) -> tuple[str | None, bytes | None]:
    """Return the name of a conversation's image, and its bytes if they stand in the row."""
    if not found:
        return None, None
    if len(found) > 1:
        raise Unusable(
            "several-images", f"has {len(found)} images; a conversation about several is not offered, one is learnt"
        )
    image, path = found[0], None
    if isinstance(image, str) and image[:5].lower() == "data:":
        head, _, packed = image.partition(",")
        try:
            folded = "".join(packed.split())  # lines of 76 letters, as mail has them
            image = base64.b64decode(folded, validate=True) if head.lower().endswith(";base64") else b""
        except (binascii.Error, ValueError):
            image = b""
        if not image:
            raise Unusable("image-field", "has a data: image that is no whole base64")
    if isinstance(image, dict):  # as `datasets` embeds it
        path = image.get("path")
        image = image.get("bytes") or path
    if isinstance(image, bytes):
        return embedded_name(image, path), image
    if not isinstance(image, str) or not image:
        raise Unusable("image-field", f"has an image field that is a JSON {_kind(image)}, not one file name")
    return image.removeprefix("file://").removeprefix("./"), None


def _check(turns: list[Turn], image: str | None) -> None:
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            rule = f"does not alternate user and assistant at turn {number}" if number else "does not start with a user"
            raise Unusable("order", rule)
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if tags > 1:
        raise Unusable("image-tags", f"has {tags} image tags; one image stands in one place")
    if tags and image is None:
        raise Unusable("no-image", f"has the image tag {IMAGE_TAG} but names no image")
    if any(IMAGE_TAG in turn.text for turn in turns if turn.role == "assistant"):
        raise Unusable("tag-in-answer", f"has the image tag {IMAGE_TAG} in an answer; it belongs in a user's turn")


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else "value")
