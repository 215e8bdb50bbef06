"""Which conversations begin with their image, and micro-batches in which each image is read once.

LLaVA-Instruct-150K has 157,712 conversations on 81,479 images. Where the image stands first, all conversations of an
image share its hundreds of positions: a micro-batch that holds them together computes these once (see
`model.shared_prefix`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from multimodal_gemma.model.shared_prefix import SharedBatch, Words

if TYPE_CHECKING:
    from multimodal_gemma.training.batches import SampleLike, SplitLike

_SHORTEST = 0.85  # of the longest row that it is padded to; shorter ones make rows of their own


class TokensLike(Protocol):
    """What is needed of a split to find where its images stand."""

    def __len__(self) -> int:
        """Return how many conversations there are."""

    @property
    def image_indices(self) -> np.ndarray:
        """Their images' rows, int64 (n,), -1 for text only."""

    @property
    def lengths(self) -> np.ndarray:
        """Positions that each takes, image expanded, int64 (n,)."""

    def token_pieces(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield tokens (m,) and where each conversation's begin and end in them (rows + 1,)."""


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What the conversations of a split have in common.

    Attributes:
        opening: the tokens before the image that most conversations begin with, int64 (H,).
        units: int64 (n,), the image of each conversation that begins with `opening` and its image; of the others a
            negative number of its own.
        lengths: positions of each, int64 (n,).
        image_tokens: P, positions of an image.
        pad_token_id: fills rows on the right.
    """

    opening: np.ndarray
    units: np.ndarray
    lengths: np.ndarray
    image_tokens: int
    pad_token_id: int

    @classmethod
    def of(cls, split: TokensLike, *, image_token_id: int, image_tokens: int, pad_token_id: int) -> Sharing:
        """Find which conversations of a split may share."""
        units = -1 - np.arange(len(split), dtype=np.int64)
        pieces = list(split.token_pieces())
        opening = _commonest_opening(pieces, image_token_id)
        start = 0
        for tokens, bounds in pieces:
            rows = len(bounds) - 1
            able = np.zeros(rows, bool)
            long = np.flatnonzero(np.diff(bounds) > len(opening))
            head = tokens[bounds[long][:, None] + np.arange(len(opening) + 1)]  # (rows, H + 1)
            able[long] = (head[:, :-1] == opening).all(1) & (head[:, -1] == image_token_id)
            found = start + np.flatnonzero(able)
            units[found] = split.image_indices[found]
            start += rows
        return cls(opening, units, split.lengths, image_tokens, pad_token_id)

    @property
    def prefix(self) -> int:
        """Positions of the opening and the image."""
        return len(self.opening) + self.image_tokens

    @property
    def saved(self) -> float:
        """Share of all positions that need not be computed."""
        shared = self.units[self.units >= 0]
        repeated = len(shared) - len(np.unique(shared))
        return float(repeated * self.prefix / max(self.lengths.sum(), 1))

    def cut(self, indices: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
        """Cut conversations that may share into micro-batches that stay within a budget.

        Args:
            indices: conversations of units >= 0; those of one image are neighbours.
            budget: positions of a forward pass, padding counted; at least the longest conversation.

        Returns:
            Micro-batches in the order of `indices`, none empty.
        """
        batches: list[list[int]] = []
        images: set[int] = set()
        longest = 0
        for index in indices:
            unit, words = int(self.units[index]), int(self.lengths[index]) - self.prefix
            most = max(longest, words)
            wanted = len(images | {unit}) * self.prefix + (len(batches[-1]) + 1 if batches else 1) * most
            if batches and wanted <= budget:
                batches[-1].append(int(index))
                images.add(unit)
                longest = most
            else:
                batches.append([int(index)])
                images, longest = {unit}, words
        return batches

    def together(self, indices: np.ndarray) -> np.ndarray:
        """Tell which of some conversations have their image in common with another of them, bool (len(indices),)."""
        units = self.units[indices]
        _, unit, count = np.unique(units, return_inverse=True, return_counts=True)
        return (units >= 0) & (count[unit] > 1)

    def make_batch(self, split: SplitLike, indices: Sequence[int]) -> SharedBatch:
        """Collate conversations that may share into one micro-batch.

        Args:
            split: where they are.
            indices: which ones.
        """
        samples = {index: split[index] for index in indices}
        images = list(dict.fromkeys(int(self.units[index]) for index in indices))
        slots = {image: slot for slot, image in enumerate(images)}
        order = sorted(indices, key=lambda index: -int(self.lengths[index]))
        groups: list[list[int]] = []
        for index in order:
            words = int(self.lengths[index]) - self.prefix
            if groups and words >= _SHORTEST * (int(self.lengths[groups[-1][0]]) - self.prefix):
                groups[-1].append(index)
            else:
                groups.append([index])
        return SharedBatch(
            opening=torch.from_numpy(self.opening)[None],
            words=[
                self._words([samples[index] for index in group], [slots[int(self.units[index])] for index in group])
                for group in groups
            ],
            image_indices=images,
            sample_indices=order,
            image_tokens=self.image_tokens,
            real=len(images) * self.prefix + sum(int(self.lengths[index]) - self.prefix for index in order),
        )

    def _words(self, samples: list[SampleLike], slots: list[int]) -> Words:
        begin = len(self.opening) + 1
        width = max(len(sample.input_ids) for sample in samples) - begin
        ids = np.full((len(samples), width), self.pad_token_id, np.int64)
        learnt = np.zeros((len(samples), width), bool)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.input_ids) - begin] = sample.input_ids[begin:]
            learnt[row, : len(sample.supervised) - begin] = sample.supervised[begin:]
        learnt[:, 0] = False  # a user's word: what comes after the image is never an answer
        targets = np.flatnonzero(learnt)
        return Words(
            input_ids=torch.from_numpy(ids),
            images=torch.tensor(slots),
            rows=torch.from_numpy(targets - 1),
            targets=torch.from_numpy(ids.reshape(-1)[targets]),
        )


def _commonest_opening(pieces: list[tuple[np.ndarray, np.ndarray]], image_token_id: int) -> np.ndarray:
    """Return the tokens before the image that most conversations have; of those as long, the first's."""
    places = [np.empty(0, np.int64)]
    for tokens, bounds in pieces:
        found = np.flatnonzero(tokens == image_token_id)
        places.append(found - bounds[np.searchsorted(bounds, found, side="right") - 1])
    every = np.concatenate(places)
    if not len(every):
        return np.empty(0, np.int64)
    commonest = int(np.bincount(every).argmax())
    for tokens, bounds in pieces:
        found = np.flatnonzero(tokens == image_token_id)
        starts = bounds[np.searchsorted(bounds, found, side="right") - 1]
        fitting = np.flatnonzero(found - starts == commonest)
        if len(fitting):
            start = int(starts[fitting[0]])
            return tokens[start : start + commonest].astype(np.int64)
    raise AssertionError("the commonest place was found in one of the pieces")
