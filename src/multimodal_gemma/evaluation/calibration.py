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


def auroc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve by the Mann-Whitney statistic, ties counted half; None without both kinds."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]  # mean rank among equals, from 1
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
