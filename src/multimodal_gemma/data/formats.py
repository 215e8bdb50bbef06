"""Conversations as they are published, read into one form.

Files: a JSON list, JSON lines (either packed by gzip, with or without a byte order mark) and Parquet. Rows: LLaVA and
ShareGPT (`conversations`: from, value), OpenAI and TRL (`messages`: role, content), The Cauldron and FineVision
(`texts`: user, assistant). The image: `image` or `images`, or inside a message; a file name, an https address, a
`data:` address or the bytes themselves, as `datasets` embeds them. What breaks the format is a fault with a reason,
never the end of the run by itself.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from multimodal_gemma.data.conversations import IMAGE_TAG, Conversation, Role, Turn
from multimodal_gemma.errors import InputError, Unusable

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".parquet")
EMBEDDED = "embedded/"  # begins the name of a picture that stands in the file of conversations itself
TURNS = ("conversations", "messages", "texts")  # of what a row is known by
COLUMNS = ("id", "image", "images", *TURNS)

_ROLES: dict[str, Role] = {"human": "user", "user": "user"}
_ROLES |= dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant")
_SYSTEM = "system"  # a first turn of this speaker is put before the first question
_PIECE = 1 << 20  # characters read at a time
_SPACE = " \t\n\r\ufeff"  # joined files have byte order marks in their middle
_AFTER = (*_SPACE, ",", "]")  # what may follow an item of a list
_DIGITS = 4_000  # of a number; Python itself refuses longer ones
_KEYS = 8  # of an object, named in a sentence
_CUT = 64  # characters from the end within which a fault may be a file that broke off
_OTHERS = {  # what else people have, by its first bytes
    b"PK\x03\x04": "a zip archive. Unpack it and name the file of conversations in it",
    b"\xff\xfe": "UTF-16 or UTF-32. Save it as UTF-8",
    b"\xfe\xff": "UTF-16. Save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32. Save it as UTF-8",
    b"ARROW1": "an Arrow file. Write it as Parquet (Dataset.to_parquet)",
    b"\xff\xff\xff\xff": "an Arrow file. Write it as Parquet (Dataset.to_parquet)",
    b"\x28\xb5\x2f\xfd": "packed by zstd. Unpack it, or pack it by gzip",
    b"\xfd7zXZ": "packed by xz. Unpack it, or pack it by gzip",
    b"BZh": "packed by bzip2. Unpack it, or pack it by gzip",
}
_ROWS = 16  # of Parquet that are in memory at once, pictures included


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


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What became of one published row.

    Attributes:
        read: the conversation, or why there is none.
        picture: the image's bytes where they stand in the row itself; its name is then made of their sha256.
    """

    read: Conversation | Fault
    picture: bytes | None = None


class _Absurd:
    """Stands where a number has more digits than a number has."""


def read(path: Path, name: str, columns: Mapping[str, str] | None = None, max_bytes: int = 1 << 40) -> Iterator[Row]:
    """Read a file of conversations.

    Args:
        path: the file on this machine.
        name: how to call it in a sentence.
        columns: the file's own name of one of COLUMNS where it is another.
        max_bytes: of what a compressed file may grow to.

    Yields:
        One row each, in order.

    Raises:
        InputError: the file is none of the formats, or broken; rows before the fault have been yielded.
    """
    for index, entry in enumerate(_entries(path, name, columns or {}, max_bytes)):
        picture: list[bytes] = []
        try:
            yield Row(_conversation(_renamed(entry, columns or {}), index, picture), picture[0] if picture else None)
        except Unusable as faulty:
            yield Row(Fault(index, _identity(entry, index), faulty.kind, faulty.reason))


def embedded_name(content: bytes, path: str | None) -> str:
    """Return the name of a picture that is known by its bytes; a COCO id in the path that it had stays in it."""
    last = str(path or "").replace("\\", "/").rpartition("/")[2]
    plain = "".join(letter for letter in last if letter.isalnum() or letter in "._-").strip(".")
    return f"{EMBEDDED}{hashlib.sha256(content).hexdigest()}/{plain or 'image'}"


# From files to rows


def _entries(path: Path, name: str, columns: Mapping[str, str], max_bytes: int) -> Iterator[Any]:
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 12)
    except OSError as error:
        raise InputError(f"conversations: {name} cannot be read ({error.strerror}). Check the path.") from None
    if start.startswith(b"PAR1"):
        yield from _parquet(path, name, columns)
        return
    for known, said in _OTHERS.items():
        if start.startswith(known):
            raise InputError(f"conversations: {name} is {said}.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"conversations: {name} is a web page, not conversations. Check the address.")
    try:
        with path.open("rb") as raw:
            packed = start.startswith(b"\x1f\x8b")
            if not packed and b"\0" in start:
                raise InputError(f"conversations: {name} is no UTF-8 text. Give JSON, JSON lines or Parquet.")
            binary: Any = _Capped(raw, name, max_bytes) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig") as text:  # a line ends with \n, \r\n or \r
                yield from _json(text, name)
    except UnicodeDecodeError:
        raise InputError(f"conversations: {name} is no UTF-8 text. Give JSON, JSON lines or Parquet.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"conversations: {name} is no whole gzip file ({error}). Fetch it again.") from None


class _Capped(io.BufferedReader):
    """A compressed file, unpacked up to a limit."""

    def __init__(self, stream: Any, name: str, most: int) -> None:
        super().__init__(gzip.GzipFile(fileobj=stream))
        self._name, self._most, self._seen = name, most, 0

    def read1(self, size: int = -1, /) -> bytes:
        piece = super().read1(size)
        self._seen += len(piece)
        if self._seen > self._most:
            raise InputError(
                f"conversations: {self._name} unpacks to more than {self._most:,} bytes (data.max_file_bytes)."
            )
        return piece


def _json(stream: TextIO, name: str) -> Iterator[Any]:
    text = stream.read(_PIECE)
    while text and not text.strip(_SPACE) and (more := stream.read(_PIECE)):
        text = more
    start = text.lstrip(_SPACE)[:1]
    if start == "[":
        yield from _listed(stream, text, name)
        return
    if start != "{":
        found = "is empty" if not text.strip() else "is neither a JSON list nor JSON lines"
        raise InputError(f"conversations: {name} {found}. Give JSON, JSON lines or Parquet.")
    yield from _lines(stream, text, name)


def _decoder() -> json.JSONDecoder:
    def number(text: str) -> Any:
        return int(text) if len(text) < _DIGITS else _Absurd()

    def constant(text: str) -> Any:
        return _Absurd()

    return json.JSONDecoder(parse_int=number, parse_constant=constant)


def _lines(stream: TextIO, text: str, name: str) -> Iterator[Any]:
    decode = _decoder().decode
    number, rest = 0, text
    while True:
        *lines, rest = rest.split("\n")
        more = stream.read(_PIECE)
        if not more:
            lines, rest = [*lines, rest], ""
        for line in lines:
            number += 1
            if not line.strip(_SPACE):
                continue
            try:
                yield decode(line.strip(_SPACE))
            except RecursionError:
                yield _Absurd()
            except json.JSONDecodeError as error:
                hint = "It may be truncated: fetch it again."
                if number == 1 and line.strip(_SPACE) == "{":
                    hint = "One object over many lines is no list of conversations."
                raise InputError(
                    f"conversations: line {number:,} of {name} is no whole JSON document ({error.msg}, column "
                    f"{error.colno}). {hint}"
                ) from None
        if not more:
            return
        rest += more


def _listed(stream: TextIO, text: str, name: str) -> Iterator[Any]:
    """Yield the items of a JSON list, which may be larger than memory."""
    decode = _decoder().raw_decode
    count, place = 0, text.index("[") + 1

    def sign() -> str:
        """Return the next character that is no space, "" at the end of the file."""
        nonlocal text, place
        while True:
            while place < len(text) and text[place] in _SPACE:
                place += 1
            if place < len(text):
                return text[place]
            text, place = stream.read(_PIECE), 0
            if not text:
                return ""

    def broken(what: str, hint: str = "It may be truncated: fetch it again.") -> InputError:
        return InputError(
            f"conversations: {name} is no whole JSON document: {what} after {count:,} conversations. {hint}"
        )

    if sign() == "]":
        place += 1
    else:
        while True:
            sign()
            while True:
                fault = ""
                try:
                    value, end = decode(text, place)
                    whole = text[end : end + 1] in _AFTER  # else a number may go on in the next piece
                except RecursionError:
                    raise InputError(
                        f"conversations: conversation {count} of {name} is nested too deeply. Correct or remove it."
                    ) from None
                except json.JSONDecodeError as error:
                    whole, fault = False, error.msg
                    if not fault.startswith("Unterminated") and error.pos < len(text) - _CUT:
                        raise broken(fault, "Correct it there.") from None
                if whole:
                    break
                more = stream.read(max(_PIECE, len(text) - place))
                if not more:
                    raise broken(fault or "it breaks off")
                text, place = text[place:] + more, 0
            place = end
            yield value
            count += 1
            following = sign()
            place += 1
            if following == "]":
                break
            if following != ",":
                raise broken("a comma is missing" if following else "it breaks off")
    if sign():
        raise broken("more text follows the list", "Give one list, or one conversation a line (JSON lines).")


def _parquet(path: Path, name: str, columns: Mapping[str, str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            there = table.schema_arrow.names
            known = [columns.get(key, key) for key in TURNS]
            if not any(key in there for key in known):
                raise InputError(
                    f"conversations: {name} has the columns {_listed_keys(there)} and none of {', '.join(known)}. "
                    "Name its own with data.columns, e.g. data.columns={conversations: dialogue}."
                )
            wanted = [field for field in there if field in ("set", *COLUMNS, *columns.values())]
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"conversations: {name} is no readable Parquet file ({reason}). Fetch it again.") from None


# From a row to a conversation


def _renamed(entry: Any, columns: Mapping[str, str]) -> Any:
    if not isinstance(entry, dict) or not columns:
        return entry
    others = {key: value for key, value in entry.items() if key not in columns}
    return {**others, **{ours: entry.get(theirs) for ours, theirs in columns.items()}}


def _identity(entry: Any, index: int) -> str:
    found = entry.get("id", index) if isinstance(entry, dict) else index
    plain = found if isinstance(found, str | int) and not isinstance(found, bool) else index
    return _plain(plain)


def _plain(value: Any) -> str:
    return str(value)[:200].encode("utf-8", "replace").decode("utf-8")


def _conversation(entry: Any, index: int, picture: list[bytes]) -> Conversation:
    if isinstance(entry, _Absurd):
        raise Unusable("absurd", "is nested too deeply")
    if not isinstance(entry, dict):
        raise Unusable("no-conversation", f"is a JSON {_kind(entry)}, no conversation")
    if isinstance(entry.get("id"), _Absurd):
        raise Unusable("absurd", "has an id that is a number of thousands of digits, or no number")
    if entry and not any(key in entry for key in TURNS):
        raise Unusable("no-turns", f"has none of {', '.join(TURNS)}, but {_listed_keys(entry)}")
    said = _said(next((entry[key] for key in TURNS if entry.get(key) is not None), None))
    if not isinstance(said, list) or not said:
        raise Unusable("no-turns", "has no turns")
    turns = _turns([one for pair in said for one in _both(pair)])
    image = _image(_images(entry, said), picture)
    _check(turns, image)
    if image is not None and not any(IMAGE_TAG in turn.text for turn in turns):
        turns[0] = Turn("user", f"{IMAGE_TAG}\n{turns[0].text}")
    made = Conversation(_identity(entry, index), image, turns, _plain(entry.get("set") or ""))
    if any(_surrogate(text) for text in (str(entry.get("id", "")), image or "", *(turn.text for turn in turns))):
        raise Unusable("surrogate", "holds half of a character (a lone surrogate), which is no text")
    return made


def _said(value: Any) -> Any:
    """Return a list of turns also from what tables hold instead: JSON in a text, or a list for each part of a turn."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = _decoder().decode(value)
    if isinstance(value, dict):
        parts = list(value.values())
        if all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            return [dict(zip(value, turn, strict=True)) for turn in zip(*parts, strict=True)]
    return value


def _listed_keys(keys: Collection[str]) -> str:
    shown = [key[:40].encode("ascii", "backslashreplace").decode() for key in list(keys)[:_KEYS]]
    return ", ".join([*shown, "…"] if len(keys) > _KEYS else shown) or "nothing"


def _both(pair: Any) -> list[Any]:
    """Return a question and its answer in the layout of The Cauldron as two turns; any other turn as it is."""
    if isinstance(pair, dict) and "user" in pair and "assistant" in pair:
        return [{"role": role, "content": pair[role]} for role in ("user", "assistant")]
    return [pair]


def _turns(said: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    system = ""
    for number, turn in enumerate(said):
        text = _text(turn.get("value", turn.get("content"))) if isinstance(turn, dict) else None
        if text is None:
            raise Unusable("no-text", f'has a turn {number} without "from" and "value" (or "role" and "content") texts')
        speaker = turn.get("from", turn.get("role"))
        if number == 0 and speaker == _SYSTEM and len(said) > 1:
            system = text.strip()
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
    given = [item for item in found if item not in (None, "") and not _no_picture(item)]
    return [item for place, item in enumerate(given) if item not in given[:place]]


def _no_picture(item: Any) -> bool:
    """Whether a column of pictures is empty in this row."""
    return isinstance(item, dict) and not any(item.values())


def _image(found: list[Any], picture: list[bytes]) -> str | None:
    """Return the name of a conversation's image; put the bytes into `picture` if they stand in the row."""
    if not found:
        return None
    if len(found) > 1:
        raise Unusable(
            "several-images", f"has {len(found)} images; a conversation about several is not offered, one is learnt"
        )
    image = found[0]
    if isinstance(image, str) and image[:5].lower() == "data:":
        head, _, packed = image.partition(",")
        try:
            folded = "".join(packed.split())  # lines of 76 letters, as mail has them
            image = base64.b64decode(folded, validate=True) if head.lower().endswith(";base64") else b""
        except (binascii.Error, ValueError):
            image = b""
        if not image:
            raise Unusable("image-field", "has a data: image that is no whole base64")
    path = None
    if isinstance(image, dict):  # as `datasets` embeds it
        path = image.get("path")
        image = image.get("bytes") or path
    if isinstance(image, bytes):
        picture.append(image)
        return embedded_name(image, path)
    if not isinstance(image, str) or not image:
        raise Unusable("image-field", f"has an image field that is a JSON {_kind(image)}, not one file name")
    return image.removeprefix("file://").removeprefix("./")


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


def _surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else "value")
