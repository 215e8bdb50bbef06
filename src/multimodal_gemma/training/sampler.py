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


def epoch_steps(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, units: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cut one epoch into optimiser steps.

    Args:
        lengths: positions of each sample, int64 (samples,).
        batch_size: samples a step.
        seed: of the whole run.
        epoch: counted from 0; each has an order of its own.
        units: samples with the same number, int64 (samples,), stay neighbours; None: each stands alone.

    Returns:
        Sample indices of each step, those of one unit together, of the longest unit first; together each index once.
    """
    generator = np.random.default_rng([seed, epoch])
    order = _shuffled(len(lengths), units, generator)
    size = batch_size * _GROUP
    steps: list[np.ndarray] = []
    for start in range(0, len(order), size):
        group = order[start : start + size]
        if units is None:
            group = group[np.argsort(-lengths[group], kind="stable")]
        else:
            _, first, unit = np.unique(units[group], return_index=True, return_inverse=True)
            longest = np.zeros(len(first), np.int64)
            np.maximum.at(longest, unit, lengths[group])
            group = group[np.lexsort((-lengths[group], first[unit], -longest[unit]))]
        steps.extend(group[at : at + batch_size] for at in range(0, len(group), batch_size))
    return [steps[index] for index in generator.permutation(len(steps))]


def _shuffled(count: int, units: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Return all indices in a random order in which the members of a unit are neighbours."""
    if units is None:
        return generator.permutation(count)
    _, unit = np.unique(units, return_inverse=True)
    return np.argsort(generator.permutation(int(unit.max(initial=-1)) + 1)[unit], kind="stable")


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


def share_of_rank(step: np.ndarray, rank: int, ranks: int, units: np.ndarray | None = None) -> np.ndarray:
    """Return the samples of a step that one rank computes: every `ranks`-th, so that all get long and short ones.

    Args:
        step: samples of the step; at least one a rank.
        rank: which one, from 0.
        ranks: how many there are.
        units: of every sample of the split; a unit goes to one rank where there are units for all.
    """
    if units is None:
        return step[rank::ranks]
    _, first, unit = np.unique(units[step], return_index=True, return_inverse=True)
    if len(first) < ranks:
        return step[rank::ranks]
    turn = np.argsort(np.argsort(first))[unit]  # units counted in the order in which they stand in the step
    return step[turn % ranks == rank]
