"""What a model said to a question, and how sure its first word was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
_NO = ("No", "no", "NO", " No", " no", " NO")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what was generated, without special tokens and surrounding space.
        p_yes: probability of yes against no as the first token, in [0, 1]; None if the vocabulary has no such tokens.
        tokens: the generated token ids, up to and without the one that ends the answer.
    """

    text: str
    p_yes: float | None
    tokens: tuple[int, ...] = ()


class Generator(Protocol):
    """Answers questions about images, greedily."""

    def answer(self, asked: Iterable[tuple[Image, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Yield, for each image in turn, the answers to its questions in their order."""


class YesOrNo:
    """Reads P(yes) off the logits of the first answer token.

    The mass of every spelling of yes stands against the mass of every spelling of no. Spellings of a single token
    decide; only a vocabulary without them is read by the first tokens of its spellings, as far as they tell yes from
    no.
    """

    def __init__(self, tokenizer: Any) -> None:
        spelled = [[tokenizer.encode(word, add_special_tokens=False) for word in words] for words in (_YES, _NO)]
        single = [{ids[0] for ids in spellings if len(ids) == 1} for spellings in spelled]
        first = [{ids[0] for ids in spellings if ids} for spellings in spelled]
        yes, no = single if all(single) else first
        self._yes, self._no = sorted(yes - no), sorted(no - yes)

    def label(self, token: int) -> bool | None:
        """Return True if a token begins a yes, False if it begins a no, None if neither."""
        return True if token in self._yes else False if token in self._no else None

    def probability(self, logits: torch.Tensor) -> list[float | None]:
        """Return P(yes) of each row of logits (rows, vocabulary)."""
        if not self._yes or not self._no:
            return [None] * len(logits)
        wide = logits.float()
        odds = wide[:, self._yes].logsumexp(-1) - wide[:, self._no].logsumexp(-1)
        return odds.sigmoid().tolist()
