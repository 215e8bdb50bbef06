"""How far a score can be trusted: intervals that know that questions about one image are not independent.

Thirty questions about one photograph are nearer to one observation than to thirty. Standard errors are therefore taken
over images: each image's summed deviation is one draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from multimodal_gemma.errors import InputError

Floats = npt.NDArray[np.float64]
REPLICATES = 2000  # bootstrap draws; the ends of a 95% interval then move by a few percent of its width
SEED = 42
_DRAWN = 2_000_000  # cluster counts held in memory at once


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        mean: the score.
        standard_error: clustered by image; 0 with a single image, where nothing is known about it.
        interval: low and high end.
        clusters: how many images there are.
    """

    mean: float
    standard_error: float
    interval: tuple[float, float]
    clusters: int


def clustered_mean(
    scores: Sequence[float] | Floats,
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    weights: Sequence[float] | Floats | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return the weighted mean of scores with a cluster-robust standard error and interval.

    The linearised ratio estimator: r = sum(w y) / sum(w), variance G / (G - 1) * sum over the G clusters of
    (sum of w (y - r) in the cluster)^2 / sum(w)^2 (Cochran, Sampling Techniques, 1977, chapter 6), with Student's t
    of G - 1 degrees of freedom.

    Args:
        scores: one number a question.
        clusters: the image of each question.
        confidence: probability that the interval covers, e.g. 0.95.
        weights: weight of each question; None weighs all alike.
        bounds: smallest and largest possible score; the interval is cut there, and spans them with a single image.

    Raises:
        InputError: there are no scores, or the lengths differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    weight = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    index, count = _index(values, clusters)
    total = weight.sum()
    mean = float((weight * values).sum() / total)
    if count < 2:
        return Estimate(mean, 0.0, bounds, count)
    deviations = np.bincount(index, weights=weight * (values - mean), minlength=count)
    error = float(np.sqrt(count / (count - 1) * (deviations**2).sum()) / total)
    reach = student_t(0.5 + confidence / 2, count - 1) * error
    return Estimate(mean, error, (max(bounds[0], mean - reach), min(bounds[1], mean + reach)), count)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[str], *, confidence: float = 0.95
) -> Estimate:
    """Return the mean of ours - theirs on the same questions; what both find hard cancels out.

    Args:
        ours: scores in [0, 1], one a question.
        theirs: the other model's scores of the same questions, in the same order.
        clusters: the image of each question.
        confidence: probability that the interval covers.
    """
    if len(ours) != len(theirs):
        raise InputError(f"{len(ours)} scores cannot be paired with {len(theirs)}: compare on the same questions.")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return clustered_mean(difference, clusters, confidence=confidence, bounds=(-1.0, 1.0))


def bootstrap_interval(
    sums: Floats, statistic: Callable[[Floats], Floats], *, confidence: float = 0.95, replicates: int = REPLICATES
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of sums, clusters drawn with replacement.

    Args:
        sums: what each cluster adds to each sum, (clusters, k); e.g. columns tp, fp, fn.
        statistic: takes (replicates, k), returns (replicates,); e.g. F1 of the three.
        confidence: probability that the interval covers.
        replicates: how many times the clusters are drawn; the draws are the same in every run.
    """
    generator = np.random.default_rng(SEED)
    clusters = len(sums)
    alike = np.full(clusters, 1 / clusters)
    step = max(1, _DRAWN // clusters)
    drawn = [
        generator.multinomial(clusters, alike, size=min(step, replicates - start)).astype(np.float64) @ sums
        for start in range(0, replicates, step)
    ]
    values = statistic(np.concatenate(drawn))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def cluster_sums(columns: Floats, clusters: Sequence[str]) -> Floats:
    """Add up rows of one cluster: (questions, k) -> (clusters, k), clusters in sorted order."""
    index, count = _index(columns, clusters)
    result = np.zeros((count, columns.shape[1]))
    np.add.at(result, index, columns)
    return result


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats; infinite where that is beyond a float."""
    return math.inf if loss > 700 else math.exp(loss)


def student_t(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t, as Abramowitz & Stegun 26.7.5 expand it; 1 and 2 degrees are exact."""
    if degrees == 1:
        return float(np.tan(np.pi * (probability - 0.5)))
    if degrees == 2:
        shift = 2 * probability - 1
        return float(shift * np.sqrt(2 / (1 - shift**2)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _index(values: Floats, clusters: Sequence[str]) -> tuple[npt.NDArray[np.intp], int]:
    if len(values) != len(clusters) or not len(values):
        raise InputError(f"{len(values)} scores do not fit {len(clusters)} images. Give the image of each score.")
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return index, len(names)
