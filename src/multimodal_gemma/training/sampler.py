"""Which conversations a step sees, as a pure function of seed and step.

Conversations differ tenfold in length. Steps are drawn from neighbours in length within large shuffled groups, so that
little is padded and yet every epoch mixes anew. Nothing has a position to save: a resumed run asks for the step it
stopped at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GROUP = 50  # steps that share a group; larger pads less and mixes less


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return optimiser steps that see each of `samples` once; the last one may be smaller."""
    return -(-samples // batch_size)


def epoch_steps(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut one epoch into optimiser steps.

    Args:
        lengths: positions of each sample, int64 (samples,).
        batch_size: samples a step.
        seed: of the whole run.
        epoch: counted from 0; each has an order of its own.

    Returns:
        Sample indices of each step, longest first; together each index once.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    size = batch_size * _GROUP
    steps: list[np.ndarray] = []
    for start in range(0, len(order), size):
        group = order[start : start + size]
        group = group[np.argsort(-lengths[group], kind="stable")]
        steps.extend(group[first : first + batch_size] for first in range(0, len(group), batch_size))
    return [steps[index] for index in generator.permutation(len(steps))]


def cut_by_tokens(indices: Sequence[int] | np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Cut samples into micro-batches whose rows times longest row stay within a budget.

    Args:
        indices: samples; neighbours share a micro-batch.
        lengths: positions of every sample of the split.
        budget: positions a forward pass may have, padding counted; at least the longest sample.

    Returns:
        Micro-batches in the order of `indices`, none empty.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in indices:
        longest = max(longest, int(lengths[index])) if batches else int(lengths[index])
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(int(index))
        else:
            batches.append([int(index)])
            longest = int(lengths[index])
    return batches


def share_of_rank(step: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Return the samples of a step that one rank computes: every `ranks`-th, so that all get long and short ones."""
    return step[rank::ranks]
