"""Does the model know when it does not know? Ranking and calibration of P(yes)."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BINS = 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What P(yes) is worth.

    Attributes:
        auroc: probability that a yes question gets the higher P(yes) than a no question; None without both kinds.
        ece: expected calibration error over ten bins of equal width, in [0, 1].
        bins: per occupied bin: mean P(yes), share of yes among its questions, number of questions.
    """

    auroc: float | None
    ece: float
    bins: list[tuple[float, float, int]]


def calibration(p_yes: Floats, is_yes: npt.NDArray[np.bool_]) -> Calibration:
    """Measure P(yes) against the labels.

    Args:
        p_yes: predicted probability of yes, (questions,), float64 in [0, 1].
        is_yes: whether the label is yes, (questions,), bool.
    """
    place = np.minimum((p_yes * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            bins.append((float(p_yes[inside].mean()), float(is_yes[inside].mean()), int(inside.sum())))
    ece = sum(count * abs(share - mean) for mean, share, count in bins) / len(p_yes)
    return Calibration(auroc(p_yes, is_yes), float(ece), bins)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From which P(yes) on an answer should count as yes.

    Attributes:
        value: the threshold, in [0, 1].
        balanced_accuracy: mean of the shares of yes and of no that it gets right, on the data that it was found on.
        questions: how many those are.
    """

    value: float
    balanced_accuracy: float
    questions: int


def best_threshold(p_yes: Floats, is_yes: npt.NDArray[np.bool_]) -> Threshold:
    """Return the threshold of the highest balanced accuracy (Youden, 1950), the nearest to 0.5 among equals.

    Candidates lie half-way between neighbouring probabilities, so that they do not hang on a single question.

    Args:
        p_yes: predicted probability of yes, (questions,), float64 in [0, 1].
        is_yes: whether the label is yes, (questions,), bool; both kinds must be there.
    """
    levels, place = np.unique(p_yes, return_inverse=True)
    yes = np.bincount(place, weights=is_yes, minlength=len(levels))
    no = np.bincount(place, weights=~is_yes, minlength=len(levels))
    # Candidate k calls the levels from k on yes: k = 0 calls everything yes, the last one nothing.
    right_yes = yes.sum() - np.concatenate([[0], np.cumsum(yes)])
    right_no = np.concatenate([[0], np.cumsum(no)])
    balanced = (right_yes / yes.sum() + right_no / no.sum()) / 2
    cuts = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    chosen = best[np.argmin(np.abs(cuts[best] - 0.5))]
    return Threshold(float(cuts[chosen]), float(balanced[chosen]), len(p_yes))


def auroc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve by the Mann-Whitney statistic, ties counted half; None without both kinds."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]  # mean rank among equals, from 1
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
