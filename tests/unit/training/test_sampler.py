"""Which conversations a step sees: each once an epoch, neighbours in length, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import plan, sampler
from tests.unit.training import toys

LENGTHS = np.random.default_rng(0).lognormal(5, 0.5, 4000).astype(np.int64)


def test_an_epoch_sees_every_conversation_once():
    steps = sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=0)
    assert len(steps) == sampler.steps_per_epoch(len(LENGTHS), 32) == 125
    assert sorted(np.concatenate(steps)) == list(range(len(LENGTHS)))


def test_order_is_a_function_of_seed_and_epoch():
    first = np.concatenate(sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=0))
    assert np.array_equal(first, np.concatenate(sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=0)))
    assert not np.array_equal(first, np.concatenate(sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=1)))
    assert not np.array_equal(first, np.concatenate(sampler.epoch_steps(LENGTHS, 32, seed=2, epoch=0)))


def test_neighbours_in_length_waste_a_few_percent_where_random_batches_waste_half():
    def padding(steps):
        return 1 - LENGTHS.sum() / sum(len(step) * LENGTHS[step].max() for step in steps)

    order = np.random.default_rng(3).permutation(len(LENGTHS))
    assert padding([order[start : start + 32] for start in range(0, len(order), 32)]) > 0.4
    assert padding(sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=0)) < 0.06


def test_long_steps_do_not_come_in_order():
    means = [LENGTHS[step].mean() for step in sampler.epoch_steps(LENGTHS, 32, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_micro_batches_stay_within_the_budget_and_lose_nothing():
    lengths = np.array([10, 9, 8, 3, 3, 2, 40])
    cuts = sampler.cut_by_tokens([0, 1, 2, 3, 4, 5, 6], lengths, 40)
    assert cuts == [[0, 1, 2, 3], [4, 5], [6]]  # 4 x 10; 40 alone fills one; 3 rows of 40 would not fit
    for cut in cuts:
        assert len(cut) * max(lengths[cut]) <= 40
    assert sampler.cut_by_tokens([], lengths, 40) == []


def test_processes_share_a_step_without_overlap():
    step = np.arange(10)
    shares = [sampler.share_of_rank(step, rank, 3) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_validation_comes_evenly_and_at_the_end():
    assert plan.validation_steps(20, 10, 2) == {5, 10, 15, 20}
    assert plan.validation_steps(7, 10, 1) == {7}
    assert plan.validation_steps(6, 3, 4) == {1, 2, 3, 4, 5, 6}


def test_steps_are_those_of_the_epochs_or_of_the_limit():
    training = toys.configuration().training
    assert plan.plan_steps(training, 24) == (6, 3)
    training.max_steps = 4
    assert plan.plan_steps(training, 24) == (4, 3)
    training.max_steps = 400
    assert plan.plan_steps(training, 25) == (8, 4)


def test_a_conversation_longer_than_the_budget_is_named_with_what_to_set():
    class Split:
        lengths = np.array([50, 900, 20])
        ids = ("a", "long one", "b")

        def __len__(self):
            return 3

    plan.require_budget(Split(), 900)
    with pytest.raises(InputError, match=r"long one takes 900 positions.*Set training.batch_tokens=900"):
        plan.require_budget(Split(), 899)
