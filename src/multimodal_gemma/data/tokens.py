"""From a conversation to token ids and the mask of what is learnt, slice by slice.

The chat template writes the text and marks with `{% generation %}` the answers and their end-of-turn tokens; the
tokenizer's offsets carry that mark over to tokens. An image stays one placeholder: it grows to its patch count when
a batch is made. A slice holds some thousand conversations that follow each other; nothing but their texts, the
tokenizer and the chat template shape it, so another split or another encoder leaves it as it is.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from multimodal_gemma import files
from multimodal_gemma.data.arrow import Writer, open_arrow
from multimodal_gemma.data.conversations import Conversation, Turn
from multimodal_gemma.data.slices import Job
from multimodal_gemma.errors import Unusable
from multimodal_gemma.model import chat

if TYPE_CHECKING:
    from transformers import LlavaProcessor

FORMAT = 1  # raised when equal slices come to have other bytes
A_SLICE = 4096  # conversations
_SHAPING = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # of a saved processor
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.uint8())),  # 0 or 1: bits would have to be unpacked at every read
        ("turns", pa.int32()),  # of the conversation's turns; fewer than it has if it was cut
        ("kind", pa.string()),  # why it is left out as a word, "" if it is not
        ("reason", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A conversation as a model reads it."""

    input_ids: list[int]  # (n,) with one placeholder where the image stands
    supervised: list[bool]  # (n,) True on the tokens of answers and of their ends of turn
    turns: int  # how many of the conversation's turns are in it; fewer than it has if it was cut


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Tokenizes conversations with a saved processor; picklable, so that worker processes can share the work."""

    processor: Path  # folder of the saved processor
    digest: str  # of that folder's files; another digest is another processor
    max_text_tokens: int  # text tokens that a conversation may have; the image's positions do not count

    def __call__(self, conversation: Conversation) -> Tokenized:
        """Tokenize a conversation, cut to as many whole question-answer pairs as fit.

        Raises:
            Unusable: it has no answer, its first pair alone is too long, its image stands in what was
                cut, or its text holds the image token besides the place of its image.
        """
        turns = conversation.turns
        if not any(turn.role == "assistant" and turn.text.strip() for turn in turns):
            raise Unusable("no-answer", "it holds no answer, so there is nothing to learn")
        control = _control_tokens(self.processor, self.digest)
        if found := next(filter(None, (control.search(turn.text) for turn in turns)), None):
            # A tokenizer reads it as the token itself: a turn could end, or begin, in the middle of a text.
            reason = f"its text holds {found.group()!r}, a control token of the language model"
            raise Unusable("control-token", reason)
        pairs = [index + 1 for index, turn in enumerate(turns) if turn.role == "assistant"]
        whole = self._encode(turns[: pairs[-1]])  # a last question without an answer teaches nothing
        if self._text_tokens(whole) > self.max_text_tokens:
            fitting = bisect.bisect_right(
                pairs, self.max_text_tokens, key=lambda end: self._text_tokens(self._encode(turns[:end]))
            )
            if not fitting:
                reason = f"its first answer ends beyond {self.max_text_tokens:,} text tokens"
                raise Unusable("too-long", reason)
            whole = self._encode(turns[: pairs[fitting - 1]])
        self._check(whole, conversation)
        return whole

    def _encode(self, turns: list[Turn]) -> Tokenized:
        processor = _load(self.processor, self.digest)
        encoded: Any = processor.tokenizer.apply_chat_template(
            chat.to_messages(turns),
            chat_template=processor.chat_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return Tokenized(encoded["input_ids"], [mask == 1 for mask in encoded["assistant_masks"]], len(turns))

    def _text_tokens(self, tokenized: Tokenized) -> int:
        return len(tokenized.input_ids) - tokenized.input_ids.count(self._image_token)

    def _check(self, tokenized: Tokenized, conversation: Conversation) -> None:
        found, wanted = tokenized.input_ids.count(self._image_token), int(conversation.image is not None)
        if found < wanted:
            reason = f"its image stands in a turn beyond {self.max_text_tokens:,} text tokens"
            raise Unusable("image-cut", reason)
        if found > wanted:
            raise Unusable("image-token", "its text holds the image token besides the place of its image")
        if not any(tokenized.supervised):
            raise Unusable("no-answer", "none of its tokens is supervised")

    @property
    def _image_token(self) -> int:
        return int(_load(self.processor, self.digest).image_token_id)


@dataclasses.dataclass(frozen=True)
class TokenJob(Job):
    """Makes one slice of tokens; see `slices.Job`."""

    name: str  # place of the slice in the dataset
    conversations: Sequence[Conversation]  # in the order of its rows
    tokenizer: Tokenizer  # how

    @property
    def size(self) -> int:
        """How many conversations it makes."""
        return len(self.conversations)

    def __call__(self, path: Path, tell: Callable[[str], None]) -> None:
        """Tokenize and write the conversations."""
        with Writer(path, _SCHEMA) as rows:
            for conversation in self.conversations:
                try:
                    made = self.tokenizer(conversation)
                except Unusable as unusable:
                    rows.add(([], [], 0, unusable.kind, unusable.reason))
                    continue
                # Arrays, because rows wait for their batch: a list of Python's numbers takes ten times as much.
                learnt = np.asarray(made.supervised, np.uint8)
                rows.add((np.asarray(made.input_ids, np.int32), learnt, made.turns, "", ""), 5 * len(learnt))


def plan(conversations: Sequence[Conversation], tokenizer: Tokenizer, folder: str) -> list[TokenJob]:
    """Return the jobs that tokenize conversations, in their order.

    Args:
        conversations: all that may be learnt from.
        tokenizer: how.
        folder: of the dataset where the slices go.
    """
    import tokenizers
    import transformers

    shaping = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
        "tokenizer": tokenizer.digest,
        "max_text_tokens": tokenizer.max_text_tokens,
    }
    jobs = []
    for start in range(0, len(conversations), A_SLICE):
        held = conversations[start : start + A_SLICE]
        told = [[one.image is not None, *((turn.role, turn.text) for turn in one.turns)] for one in held]
        jobs.append(TokenJob(f"{folder}/{files.digest_of([shaping, told])[:32]}.arrow", held, tokenizer))
    return jobs


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a slice tells of each conversation: length, supervised (tokens), turns, kind and reason."""
    table = open_arrow(path)
    lengths, learnt = _flat(table, "input_ids")[1], _flat(table, "supervised")
    sums = np.concatenate([[0], np.cumsum(learnt[0], dtype=np.int64)])[learnt[1]]
    for row, told in enumerate(table.select(["turns", "kind", "reason"]).to_pylist()):
        length, supervised = int(lengths[row + 1] - lengths[row]), int(sums[row + 1] - sums[row])
        yield {"length": length, "supervised": supervised, **told}


def read(paths: Sequence[Path], places: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tokens int32 (n,) and the mask bool (n,) of conversations.

    Args:
        paths: slices.
        places: number of the slice and row in it of each conversation, ascending.
    """
    for number, held in itertools.groupby(places, key=lambda place: place[0]):
        table = open_arrow(paths[number])
        (ids, bounds), (learnt, _) = _flat(table, "input_ids"), _flat(table, "supervised")
        for _, row in held:
            where = slice(bounds[row], bounds[row + 1])
            yield ids[where], learnt[where].view(bool)


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of a column of lists one after another, and where each list begins and ends, (rows + 1,)."""
    lists = table.column(name).combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(), np.cumsum(np.concatenate([[0], lengths]), dtype=np.int64)


def digest_of_processor(folder: Path) -> str:
    """Return the digest of what in a saved processor decides on tokens."""
    return files.digest_of([files.sha256_file(folder / name) for name in _SHAPING if (folder / name).is_file()])


@functools.lru_cache(maxsize=1)
def _load(folder: Path, digest: str) -> LlavaProcessor:
    from transformers import LlavaProcessor

    return LlavaProcessor.from_pretrained(folder, local_files_only=True)


@functools.lru_cache(maxsize=1)
def _control_tokens(folder: Path, digest: str) -> re.Pattern[str]:
    """Return what finds a control token in a text; the image's placeholder is judged by its place."""
    known = _load(folder, digest).tokenizer.added_tokens_decoder.values()
    special = sorted((token.content for token in known if token.special and token.content != chat.IMAGE), key=len)
    return re.compile("|".join(map(re.escape, reversed(special))) or r"(?!)")
