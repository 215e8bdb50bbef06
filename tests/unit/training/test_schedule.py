"""Which conversations a step sees: each once an epoch, an image's together, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal_gemma.training import schedule
from tests.unit.training import toys

LENGTHS = np.random.default_rng(0).lognormal(5, 0.5, 4000).astype(np.int64)
IMAGES = np.where(np.arange(4000) % 10, np.arange(4000) // 3, -1)  # about three conversations an image, some without


def test_an_epoch_sees_every_conversation_once():
    steps = schedule.epoch_steps(IMAGES, 32, seed=1, epoch=0)
    assert [len(step) for step in steps] == [32] * 125
    assert sorted(np.concatenate(steps)) == list(range(4000))
    assert [len(step) for step in schedule.epoch_steps(IMAGES[:70], 32, seed=1, epoch=0)] == [32, 32, 6]


def test_order_is_a_function_of_seed_and_epoch():
    first = np.concatenate(schedule.epoch_steps(IMAGES, 32, seed=1, epoch=0))
    assert np.array_equal(first, np.concatenate(schedule.epoch_steps(IMAGES, 32, seed=1, epoch=0)))
    assert not np.array_equal(first, np.concatenate(schedule.epoch_steps(IMAGES, 32, seed=1, epoch=1)))
    assert not np.array_equal(first, np.concatenate(schedule.epoch_steps(IMAGES, 32, seed=2, epoch=0)))


def test_an_images_conversations_share_a_step_and_those_without_one_are_spread():
    steps = schedule.epoch_steps(IMAGES, 32, seed=1, epoch=0)
    step_of = np.empty(4000, np.int64)
    for number, step in enumerate(steps):
        step_of[step] = number
    parted = [image for image in range(4000 // 3) if len(set(step_of[image == IMAGES])) > 1]
    assert len(parted) <= len(steps)  # where a step ends, one image's may part
    alone = np.bincount(step_of[IMAGES < 0], minlength=len(steps))
    assert alone.max() < 12  # of 3.2 a step, were they all alike


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_processes_share_a_step_without_overlap_and_with_like_loads(ranks):
    for step in schedule.epoch_steps(IMAGES, 32, seed=1, epoch=0)[:20]:
        shares = [schedule.share_of_rank(step, IMAGES, LENGTHS, rank, ranks) for rank in range(ranks)]
        assert sorted(np.concatenate(shares)) == sorted(step)
        loads = [LENGTHS[share].sum() for share in shares]
        image = max(LENGTHS[step][IMAGES[step] == unit].sum() for unit in IMAGES[step])
        assert max(loads) - min(loads) <= max(image, LENGTHS[step].max())
        shown = [set(IMAGES[share][IMAGES[share] >= 0]) for share in shares]
        assert sum(map(len, shown)) == len(set().union(*shown))  # no image is read by two


def test_an_image_parts_where_a_process_would_have_nothing():
    step, one = np.arange(10), np.zeros(10, np.int64)
    shares = [schedule.share_of_rank(step, one, np.ones(10), rank, 3) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(10))
    assert all(len(share) for share in shares)


def test_validation_comes_evenly_and_at_the_end():
    assert schedule.validation_steps(20, 10, 2) == {5, 10, 15, 20}
    assert schedule.validation_steps(7, 10, 1) == {7}
    assert schedule.validation_steps(6, 3, 4) == {1, 2, 3, 4, 5, 6}


def test_steps_are_those_of_the_epochs_or_of_the_limit():
    training = toys.configuration().training
    assert schedule.plan_steps(training, 24) == (6, 3)
    training.max_steps = 4
    assert schedule.plan_steps(training, 24) == (4, 3)
    training.max_steps = 400
    assert schedule.plan_steps(training, 25) == (8, 4)
