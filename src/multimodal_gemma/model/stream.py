"""Conversations end to end in one row of positions: nothing is padded, and an image that several share is read once.

Under causal attention nothing at an image's positions depends on what is said afterwards. So conversations that begin
with the same words and the same image have those positions in common: they stand in the stream once, and each
conversation's words continue them (see `model.attention`). LLaVA-Instruct-150K has 157,712 conversations on 81,479
images. The loss is the same sum, and the gradients of all conversations meet in the shared positions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from multimodal_gemma.model.attention import Groups, Packed, Runs


class SampleLike(Protocol):
    """What is needed of a sample of `data.processed`."""

    @property
    def image_index(self) -> int:
        """Row of its image, -1 for text only."""

    @property
    def input_ids(self) -> np.ndarray:
        """Tokens (n,), with one placeholder where the image stands."""

    @property
    def supervised(self) -> np.ndarray:
        """Whether each is learnt, bool (n,)."""


class SplitLike(Protocol):
    """What is needed of a split of `data.processed`."""

    def __getitem__(self, row: int, /) -> SampleLike:
        """Return one sample."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """A forward pass: T positions, I images of P tokens, S supervised tokens.

    Attributes:
        input_ids: int64 (T,), an image's placeholder at each of its positions.
        position_ids: int64 (T,), counted in each conversation.
        image_positions: int64 (I * P,), places of the image tokens, image by image.
        rows: int64 (S,), places that predict a supervised token.
        targets: int64 (S,), the supervised tokens.
        runs: what attends to what.
        image_indices: the I images.
        sample_indices: the conversations.
        attention: `runs` as the attention takes it; None before `to`.
    """

    input_ids: Tensor
    position_ids: Tensor
    image_positions: Tensor
    rows: Tensor
    targets: Tensor
    runs: Runs
    image_indices: list[int]
    sample_indices: list[int]
    attention: Packed | Groups | None = None

    @property
    def positions(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def longest(self) -> int:
        """Positions of the longest conversation."""
        return int(self.position_ids.max()) + 1

    def to(self, device: torch.device, kernel: str = "sdpa") -> Stream:
        """Return the stream on `device`, ready for attention by `kernel`; see `attention.choose_kernel`."""
        attention = self.runs.packed(device) if kernel == "varlen" else self.runs.groups(device)
        if device.type == "cpu":
            return dataclasses.replace(self, attention=attention)
        moved = {
            name: getattr(self, name).pin_memory().to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "image_positions", "rows", "targets")
        }
        return dataclasses.replace(self, attention=attention, **moved)


class Composer:
    """Makes streams of a split's conversations.

    Args:
        split: where they are.
        image_tokens: P, positions that an image takes.
        image_token_id: its placeholder.
    """

    def __init__(self, split: SplitLike, image_tokens: int, image_token_id: int) -> None:
        self._split, self._image_tokens, self._image_token_id = split, image_tokens, image_token_id

    def streams(self, indices: Iterable[int], budget: int) -> Iterator[Stream]:
        """Yield conversations in streams of at most `budget` positions, in the order of `indices`, none empty.

        Args:
            indices: conversations; those of one image are neighbours.
            budget: positions of a stream; at least those of the longest conversation.
        """
        waiting: list[_Expanded] = []
        heads: set[Any] = set()
        used = 0
        for index in indices:
            sample = self._expanded(int(index))
            more = len(sample.ids) - (sample.shared if sample.head in heads else 0)
            if waiting and used + more > budget:
                yield self._stream(waiting)
                waiting, heads, used, more = [], set(), 0, len(sample.ids)
            waiting.append(sample)
            used += more
            if sample.head is not None:
                heads.add(sample.head)
        if waiting:
            yield self._stream(waiting)

    def stream(self, indices: Sequence[int]) -> Stream:
        """Return some conversations as one stream."""
        return self._stream([self._expanded(int(index)) for index in indices])

    def _expanded(self, index: int) -> _Expanded:
        sample = self._split[index]
        if sample.image_index < 0:
            return _Expanded(index, sample.input_ids, sample.supervised, -1, 0, 0, None)
        place = int(np.flatnonzero(sample.input_ids == self._image_token_id)[0])
        opening, end = sample.input_ids[:place], place + self._image_tokens
        image = np.full(self._image_tokens, self._image_token_id, sample.input_ids.dtype)
        ids = np.concatenate([opening, image, sample.input_ids[place + 1 :]])
        learnt = np.concatenate([sample.supervised[:place], np.zeros(len(image), bool), sample.supervised[place + 1 :]])
        # Where a shared position would have something to predict, it would have to do so for each conversation.
        alone = learnt[1 : end + 1].any() or end == len(ids)
        head = None if alone else (opening.tobytes(), sample.image_index)
        return _Expanded(index, ids, learnt, sample.image_index, place, end, head)

    def _stream(self, samples: list[_Expanded]) -> Stream:
        sharing = Counter(sample.head for sample in samples if sample.head is not None)
        heads: dict[Any, int] = {}  # where each shared beginning stands
        ids, positions, own, before, targets, images, places = [], [], [], [], [], [], []
        end = 0

        def add(sample: _Expanded, begin: int, stop: int, continued: tuple[int, int]) -> None:
            nonlocal end
            run = slice(begin, stop)
            ids.append(sample.ids[run])
            positions.append(np.arange(begin, stop))
            learnt = np.flatnonzero(sample.learnt[run])
            targets.append(end + learnt[learnt > 0])  # nothing in the run comes before its first token
            if begin <= sample.place < stop and sample.image >= 0:
                images.append(sample.image)
                places.append(np.arange(end + sample.place - begin, end + sample.shared - begin))
            own.append((end, end + stop - begin))
            before.append(continued)
            end += stop - begin

        for sample in samples:
            if sharing[sample.head] < 2:
                add(sample, 0, len(sample.ids), (end, end))
                continue
            if sample.head not in heads:
                heads[sample.head] = end
                add(sample, 0, sample.shared, (end, end))
            at = heads[sample.head]
            add(sample, sample.shared, len(sample.ids), (at, at + sample.shared))
        input_ids, learnt = np.concatenate(ids).astype(np.int64), np.concatenate(targets)
        return Stream(
            input_ids=torch.from_numpy(input_ids),
            position_ids=torch.from_numpy(np.concatenate(positions)),
            image_positions=torch.from_numpy(np.concatenate(places) if places else np.empty(0, np.int64)),
            rows=torch.from_numpy(learnt - 1),
            targets=torch.from_numpy(input_ids[learnt]),
            runs=Runs(np.array(own), np.array(before)),
            image_indices=images,
            sample_indices=[sample.index for sample in samples],
        )


@dataclasses.dataclass(frozen=True)
class _Expanded:
    """A conversation with its image's placeholder repeated.

    Attributes:
        index: of the conversation.
        ids: (n,).
        learnt: bool (n,).
        image: its image, -1 for none.
        place: where the image begins.
        shared: where it ends.
        head: equal for conversations that may share their first `shared` positions; None: this one shares none.
    """

    index: int
    ids: np.ndarray
    learnt: np.ndarray
    image: int
    place: int
    shared: int
    head: Any
