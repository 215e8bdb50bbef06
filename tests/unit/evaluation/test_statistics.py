"""Clustered uncertainty against formulas worked by hand and scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.calibration import auroc, calibration
from multimodal_gemma.evaluation.statistics import (
    bootstrap_interval,
    cluster_sums,
    clustered_mean,
    paired_difference,
    student_t,
)


def test_one_question_an_image_gives_the_textbook_standard_error() -> None:
    scores = np.array([1, 0, 1, 1, 0, 1, 1, 1.0])
    estimate = clustered_mean(scores, [str(n) for n in range(8)])
    assert estimate.standard_error == pytest.approx(scores.std(ddof=1) / np.sqrt(8))


def test_repeating_every_question_about_an_image_adds_no_certainty() -> None:
    scores, images = [1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "d"]
    once = clustered_mean(scores, images)
    thrice = clustered_mean(scores * 3, images * 3)
    assert thrice.standard_error == pytest.approx(once.standard_error)
    assert thrice.interval == pytest.approx(once.interval)


def test_ratio_estimator_by_hand_for_unequal_clusters() -> None:
    # Clusters a: 1, 1, 0 and b: 0 and c: 1. r = 3/5; deviations 2 - 9/5, -3/5, 2/5; variance 3/2 * sum of squares / 25.
    estimate = clustered_mean([1, 1, 0, 0, 1], ["a", "a", "a", "b", "c"])
    assert estimate.mean == pytest.approx(0.6)
    assert estimate.standard_error == pytest.approx(np.sqrt(1.5 * (0.04 + 0.36 + 0.16)) / 5)
    assert estimate.clusters == 3


def test_weights_make_settings_of_different_size_count_alike() -> None:
    estimate = clustered_mean([1, 1, 1, 0], list("abcd"), weights=[1 / 3, 1 / 3, 1 / 3, 1])
    assert estimate.mean == pytest.approx(0.5)


def test_a_single_image_says_nothing_about_others() -> None:
    assert clustered_mean([1.0, 1.0], ["a", "a"]).interval == (0.0, 1.0)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(60), 8)
    names = [str(image) for image in images]
    covered = 0
    for _ in range(400):
        skill = rng.beta(6, 2, size=60)  # mean 0.75, shared by an image's questions
        scores = (rng.random(480) < skill[images]).astype(float)
        low, high = clustered_mean(scores, names).interval
        covered += low <= 0.75 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_bootstrap_agrees_with_the_analytic_interval_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    images = [str(image) for image in np.repeat(np.arange(200), 5)]
    scores = (rng.random(1000) < np.repeat(rng.beta(4, 2, size=200), 5)).astype(float)
    analytic = clustered_mean(scores, images).interval
    sums = cluster_sums(np.stack([scores, np.ones(1000)], axis=1), images)
    drawn = bootstrap_interval(sums, lambda totals: totals[:, 0] / totals[:, 1])
    assert drawn == pytest.approx(analytic, abs=0.006)
    assert drawn == bootstrap_interval(sums, lambda totals: totals[:, 0] / totals[:, 1])  # the same in every run


def test_pairing_finds_a_small_difference_that_two_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    images = [str(n) for n in range(1000)]
    theirs = (rng.random(1000) < 0.7).astype(float)
    ours = np.where((theirs == 0) & (rng.random(1000) < 0.1), 1.0, theirs)
    paired = paired_difference(list(ours), list(theirs), images)
    assert paired.interval[0] > 0
    assert clustered_mean(ours, images).interval[0] < clustered_mean(theirs, images).interval[1]
    with pytest.raises(InputError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


def test_student_t_matches_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 5, 13, 119, 5000):
        assert student_t(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


def test_auroc_counts_ordered_pairs_and_half_of_ties() -> None:
    scores, positive = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert auroc(scores, positive) == pytest.approx(3.5 / 4)
    assert auroc(scores, np.array([True] * 4)) is None


def test_calibration_error_by_hand() -> None:
    found = calibration(np.array([0.95, 0.95, 0.15, 1.0]), np.array([True, False, False, True]))
    # Bins: 0.1 holds one (0.15 against 0), 0.9 holds three (mean 0.9667 against 2/3): (0.15 + 3 * 0.3) / 4.
    assert found.ece == pytest.approx((0.15 + 3 * 0.3) / 4)
    assert [count for _, _, count in found.bins] == [1, 3]
