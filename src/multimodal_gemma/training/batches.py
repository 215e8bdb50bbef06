"""From samples to the tensors of a micro-batch.

An image's single placeholder is repeated to its patch count here, so that the dataset on disk stays small. Where
features go and which positions predict a supervised token is worked out on the processor, once, instead of by masks on
the accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from multimodal_gemma.model.forward import Batch


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

    def __getitem__(self, row: int) -> SampleLike:
        """Return one sample."""


def make_batch(
    split: SplitLike,
    indices: Sequence[int],
    *,
    image_tokens: int,
    image_token_id: int,
    pad_token_id: int,
    multiple: int = 1,
) -> Batch:
    """Collate samples into one micro-batch.

    Args:
        split: where the samples are.
        indices: which ones; R of them.
        image_tokens: P, positions that an image takes.
        image_token_id: the placeholder.
        pad_token_id: fills the right.
        multiple: row length is rounded up to a multiple of this, which bounds the number of shapes.
    """
    samples = [split[index] for index in indices]
    lengths = [len(sample.input_ids) + (image_tokens - 1 if sample.image_index >= 0 else 0) for sample in samples]
    width = -(-max(lengths) // multiple) * multiple
    ids = np.full((len(samples), width), pad_token_id, np.int64)
    learnt = np.zeros((len(samples), width), bool)  # positions that hold a supervised token
    image_starts, image_indices = [], []
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        if sample.image_index < 0:
            ids[row, :length] = sample.input_ids
            learnt[row, :length] = sample.supervised
            continue
        place = int(np.flatnonzero(sample.input_ids == image_token_id)[0])
        ids[row, :place] = sample.input_ids[:place]
        ids[row, place : place + image_tokens] = image_token_id
        ids[row, place + image_tokens : length] = sample.input_ids[place + 1 :]
        learnt[row, :place] = sample.supervised[:place]
        learnt[row, place + image_tokens : length] = sample.supervised[place + 1 :]
        image_starts.append(row * width + place)
        image_indices.append(sample.image_index)
    learnt[:, 0] = False  # nothing comes before the first token that could predict it
    targets = np.flatnonzero(learnt)
    positions = np.asarray(image_starts, np.int64)[:, None] + np.arange(image_tokens)
    return Batch(
        input_ids=torch.from_numpy(ids),
        image_positions=torch.from_numpy(positions.reshape(-1)),
        rows=torch.from_numpy(targets - 1),
        targets=torch.from_numpy(ids.reshape(-1)[targets]),
        image_indices=image_indices,
        sample_indices=list(indices),
        real=sum(lengths),
    )
