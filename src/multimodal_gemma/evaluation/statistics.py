"""How far a score can be trusted: intervals, calibration and thresholds that know how little a question says.

Thirty questions about one photograph are nearer to one observation than to thirty. Standard errors are therefore taken
over images: each image's summed deviation is one draw. What the libraries of the field compute is left to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multimodal_gemma.errors import InputError

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
FEWEST = 10  # images; with fewer, an interval says hardly more than "between nothing and all"
_BINS = 10


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty."""

    mean: float  # the score
    standard_error: float  # clustered by image; 0 with a single image, where nothing is known about it
    interval: Interval | None  # low and high end; None where there are too few images for one
    clusters: int  # how many images there are


def clustered_mean(
    scores: Sequence[float] | Floats,
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    weights: Sequence[float] | Floats | None = None,
) -> Estimate:
    """Return the weighted mean of scores in [0, 1] with an interval that stays in [0, 1] and never shrinks to a point.

    Wilson's interval (1927) on the effective sample size: as many independent questions as would have the clustered
    standard error, at most as many as there are, and as many as images where all scores are 0 or all are 1; Student's t
    of G - 1 degrees of freedom takes the normal quantile's place (Dean and Pagano, 2015).

    Args:
        scores: one number a question.
        clusters: the image of each question.
        confidence: probability that the interval covers, e.g. 0.95.
        weights: weight of each question; None weighs all alike.

    Raises:
        InputError: there are no scores, or the lengths differ.
    """
    from scipy import stats

    mean, error, count, size = _ratio(scores, clusters, weights)
    if count < FEWEST:
        return Estimate(mean, error, None, count)
    spread = mean * (1 - mean)
    effective = count if spread <= 0 else size if error <= 0 else min(spread / error**2, size)
    square = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) ** 2
    centre = (mean + square / (2 * effective)) / (1 + square / effective)
    reach = math.sqrt(square * (max(spread, 0.0) / effective + square / (4 * effective**2))) / (1 + square / effective)
    # The interval holds the mean by its formula; rounding must not say otherwise at 0 and 1.
    return Estimate(mean, error, (max(0.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach))), count)


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    weights: Sequence[float] | Floats | None = None,
) -> Estimate:
    """Return the mean of ours - theirs on the same questions; what both find hard cancels out.

    The interval is the mean plus and minus Student's t of G - 1 degrees of freedom times the clustered standard error,
    cut at -1 and 1, which it spans with a single image.

    Args:
        ours: scores in [0, 1], one a question.
        theirs: the other model's scores of the same questions, in the same order.
        clusters: the image of each question.
        confidence: probability that the interval covers.
        weights: weight of each question; None weighs all alike.
    """
    from scipy import stats

    if len(ours) != len(theirs):
        raise InputError(f"{len(ours)} scores cannot be paired with {len(theirs)}: compare on the same questions.")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    mean, error, count, _ = _ratio(difference, clusters, weights)
    if count < 2:
        return Estimate(mean, 0.0, (-1.0, 1.0), count)
    reach = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * error
    return Estimate(mean, error, (max(-1.0, mean - reach), min(1.0, mean + reach)), count)


def _ratio(
    scores: Sequence[float] | Floats, clusters: Sequence[str], weights: Sequence[float] | Floats | None
) -> tuple[float, float, int, float]:
    """Return mean, clustered standard error, number of clusters, and how many equally weighted scores there would be.

    The linearised ratio estimator: r = sum(w y) / sum(w), variance G / (G - 1) * sum over the G clusters of
    (sum of w (y - r) in the cluster)^2 / sum(w)^2 (Cochran, Sampling Techniques, 1977, chapter 6).
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(clusters) or not len(values):
        raise InputError(f"{len(values)} scores do not fit {len(clusters)} images. Give the image of each score.")
    weight = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    count, total = len(names), weight.sum()
    mean, size = float((weight * values).sum() / total), float(total**2 / (weight**2).sum())
    if count < 2:
        return mean, 0.0, count, size
    deviations = np.bincount(index, weights=weight * (values - mean), minlength=count)
    return mean, float(np.sqrt(count / (count - 1) * (deviations**2).sum()) / total), count, size


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats; infinite where that is beyond a float."""
    return math.inf if loss > 700 else math.exp(loss)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What P(yes) is worth."""

    # Probability that a yes question gets the higher P(yes) than a no question; None without both kinds.
    auroc: float | None
    ece: float  # expected calibration error over ten bins of equal width, in [0, 1]
    # Per occupied bin: mean P(yes), share of yes among its questions, number of questions.
    bins: list[tuple[float, float, int]]


def calibration(p_yes: Floats, is_yes: npt.NDArray[np.bool_]) -> Calibration:
    """Measure P(yes) against the labels.

    Args:
        p_yes: predicted probability of yes, (questions,), float64 in [0, 1].
        is_yes: whether the label is yes, (questions,), bool.
    """
    from scipy.stats import binned_statistic
    from sklearn.metrics import roc_auc_score

    (means, shares), _, place = binned_statistic(p_yes, [p_yes, is_yes], "mean", bins=_BINS, range=(0, 1))
    counts = np.bincount(place - 1, minlength=_BINS)
    kept = counts > 0
    bins = [(float(m), float(s), int(n)) for m, s, n in zip(means[kept], shares[kept], counts[kept], strict=True)]
    ece = sum(count * abs(share - mean) for mean, share, count in bins) / len(p_yes)
    both = bool(is_yes.any() and not is_yes.all())
    return Calibration(float(roc_auc_score(is_yes, p_yes)) if both else None, float(ece), bins)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From which P(yes) on an answer should count as yes."""

    value: float  # the threshold, in [0, 1]
    balanced_accuracy: float  # mean of the shares of yes and of no that it gets right, on the data that it was found on
    questions: int  # how many those are


def best_threshold(p_yes: Floats, is_yes: npt.NDArray[np.bool_]) -> Threshold:
    """Return the threshold of the highest balanced accuracy (Youden, 1950), the nearest to 0.5 among equals.

    Candidates lie half-way between neighbouring probabilities, so that they do not hang on a single question.

    Args:
        p_yes: predicted probability of yes, (questions,), float64 in [0, 1].
        is_yes: whether the label is yes, (questions,), bool; both kinds must be there.
    """
    from sklearn.metrics import roc_curve

    missed, found, levels = roc_curve(is_yes, p_yes, drop_intermediate=False)  # levels fall from infinity
    below = np.append(levels[1:], -np.inf)
    cuts = np.clip((np.clip(levels, 0, 1) + np.clip(below, 0, 1)) / 2, 0, 1)
    cuts[0], cuts[-1] = 1.0, 0.0
    balanced = (found + 1 - missed) / 2
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)[::-1]  # the lower one of two as near to 0.5
    chosen = best[np.argmin(np.abs(cuts[best] - 0.5))]
    return Threshold(float(cuts[chosen]), float(balanced[chosen]), len(p_yes))
