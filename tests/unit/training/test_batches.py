"""A batch puts the image where its placeholder stands and predicts exactly the supervised tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from multimodal_gemma.training.batches import make_batch

IMAGE, PAD = 90, 99


@dataclasses.dataclass
class Sample:
    image_index: int
    input_ids: np.ndarray
    supervised: np.ndarray


def sample(index, ids, learnt):
    return Sample(index, np.array(ids, np.int32), np.array([token in learnt for token in ids]))


def test_a_batch_worked_by_hand():
    split = [
        sample(5, [1, IMAGE, 2, 3], {3}),
        sample(-1, [1, 4, 5], {1, 5}),  # a supervised first token has nothing that could predict it
        sample(8, [IMAGE, 6, 7], {6, 7}),
    ]
    batch = make_batch(split, [0, 1, 2], image_tokens=3, image_token_id=IMAGE, pad_token_id=PAD, multiple=8)
    assert batch.input_ids.tolist() == [
        [1, IMAGE, IMAGE, IMAGE, 2, 3, PAD, PAD],
        [1, 4, 5, PAD, PAD, PAD, PAD, PAD],
        [IMAGE, IMAGE, IMAGE, 6, 7, PAD, PAD, PAD],
    ]
    assert batch.image_positions.tolist() == [1, 2, 3, 16, 17, 18]
    assert batch.image_indices == [5, 8]
    assert batch.targets.tolist() == [3, 5, 6, 7]
    assert batch.rows.tolist() == [4, 9, 18, 19]  # one before each target: 5, 10, 19, 20
    assert batch.sample_indices == [0, 1, 2]


def test_rows_are_no_longer_than_the_longest():
    split = [sample(-1, [1, 2, 3, 4, 5], {5}), sample(-1, [1, 2], {2})]
    batch = make_batch(split, [1, 0], image_tokens=3, image_token_id=IMAGE, pad_token_id=PAD)
    assert batch.input_ids.shape == (2, 5)
    assert batch.image_positions.tolist() == []
    assert batch.image_indices == []
