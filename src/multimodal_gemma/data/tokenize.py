"""From a conversation to token ids and the mask of what is learnt.

The chat template writes the text and marks with `{% generation %}` the answers and their end-of-turn tokens; the
tokenizer's offsets carry that mark over to tokens. An image stays one placeholder: it grows to its patch count when
a batch is made.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma.data.conversations import Conversation, Turn
from multimodal_gemma.model import chat

if TYPE_CHECKING:
    from transformers import LlavaProcessor


class UnusableConversation(Exception):
    """Why a conversation cannot be learnt from; it is recorded and left out.

    Attributes:
        kind: the reason as a word to count by, e.g. "too-long".
        reason: the reason in words for a person.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A conversation as a model reads it.

    Attributes:
        input_ids: (n,) with one placeholder where the image stands.
        supervised: (n,) True on the tokens of answers and of their ends of turn.
        turns: how many of the conversation's turns are in it; fewer than it has if it was cut.
    """

    input_ids: list[int]
    supervised: list[bool]
    turns: int


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Tokenizes conversations with a saved processor; picklable, so that worker processes can share the work.

    Attributes:
        processor: folder of the saved processor.
        digest: of that folder's files; another digest is another processor.
        max_text_tokens: text tokens that a conversation may have; the image's positions do not count.
    """

    processor: Path
    digest: str
    max_text_tokens: int

    def __call__(self, conversation: Conversation) -> Tokenized:
        """Tokenize a conversation, cut to as many whole question-answer pairs as fit.

        Raises:
            UnusableConversation: it has no answer, its first pair alone is too long, its image stands in what was
                cut, or its text holds the image token besides the place of its image.
        """
        turns = conversation.turns
        if not any(turn.role == "assistant" and turn.text.strip() for turn in turns):
            raise UnusableConversation("no-answer", "it holds no answer, so there is nothing to learn")
        pairs = [index + 1 for index, turn in enumerate(turns) if turn.role == "assistant"]
        whole = self._encode(turns[: pairs[-1]])  # a last question without an answer teaches nothing
        if self._text_tokens(whole) > self.max_text_tokens:
            fitting = bisect.bisect_right(
                pairs, self.max_text_tokens, key=lambda end: self._text_tokens(self._encode(turns[:end]))
            )
            if not fitting:
                reason = f"its first answer ends beyond {self.max_text_tokens:,} text tokens"
                raise UnusableConversation("too-long", reason)
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
            raise UnusableConversation("image-cut", reason)
        if found > wanted:
            raise UnusableConversation("image-token", "its text holds the image token besides the place of its image")
        if not any(tokenized.supervised):
            raise UnusableConversation("no-answer", "none of its tokens is supervised")

    @property
    def _image_token(self) -> int:
        return int(_load(self.processor, self.digest).image_token_id)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one conversation: tokens, or the reason why there are none."""

    tokenized: Tokenized | None
    kind: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TokenizeChunk:
    """Tokenizes a list of conversations; what `ordered_map` sends to a worker."""

    tokenizer: Tokenizer

    def __call__(self, conversations: list[Conversation]) -> list[Outcome]:
        """Return an outcome for each conversation, in their order."""
        return [self._outcome(conversation) for conversation in conversations]

    def _outcome(self, conversation: Conversation) -> Outcome:
        try:
            return Outcome(self.tokenizer(conversation))
        except UnusableConversation as unusable:
            return Outcome(None, unusable.kind, unusable.reason)


@functools.lru_cache(maxsize=1)
def _load(folder: Path, digest: str) -> LlavaProcessor:
    from transformers import LlavaProcessor

    return LlavaProcessor.from_pretrained(folder, local_files_only=True)
