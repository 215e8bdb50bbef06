"""Clustered uncertainty against formulas worked by hand, scipy's intervals and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.statistics import calibration, clustered_mean, paired_difference


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


def test_fewer_than_ten_images_have_no_interval() -> None:
    assert clustered_mean([1.0, 1.0, 0.0], ["a", "a", "b"]).interval is None
    assert clustered_mean([1.0] * 9, list("abcdefghi")).interval is None
    assert clustered_mean([1.0] * 10, list("abcdefghij")).interval is not None


def test_one_question_an_image_gives_wilsons_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    right, count = 850, 1000
    scores = [1.0] * right + [0.0] * (count - right)
    wilson = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    # Student's t of 999 degrees of freedom is 0.1% wider than the normal's, and G / (G - 1) as little.
    assert clustered_mean(scores, [str(n) for n in range(count)]).interval == pytest.approx(tuple(wilson), abs=1e-4)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_all_right_or_all_wrong_is_no_certainty(score: float) -> None:
    """Of 14 images all right: as sure as of 14 questions, whatever is asked about each."""
    low, high = clustered_mean([score] * 42, [str(n % 14) for n in range(42)]).interval or (-1, -1)
    square = 2.1604**2  # t(0.975, 13)
    assert (low, high) == pytest.approx((14 / (14 + square), 1.0) if score else (0.0, square / (14 + square)), abs=1e-4)


@pytest.mark.parametrize("images", [14, 120, 500])
@pytest.mark.parametrize("skill", [0.5, 0.8, 0.95])
def test_intervals_cover_as_often_as_they_say(images: int, skill: float) -> None:
    """Images of 6 to 17 questions whose difficulty they share: an intraclass correlation of 0.1."""
    rng = np.random.default_rng(images)
    spread = 9.0  # of a beta distribution: 1 / (1 + spread) is the correlation
    covered, trials = 0, 2000
    for _ in range(trials):
        asked = rng.integers(6, 18, size=images)
        right = rng.binomial(asked, rng.beta(spread * skill, spread * (1 - skill), size=images))
        scores = np.repeat(np.tile([1.0, 0.0], images), np.stack([right, asked - right], axis=1).ravel())
        low, high = clustered_mean(scores, np.repeat(np.arange(images).astype(str), asked)).interval or (0, 0)
        covered += low <= skill <= high
    assert 0.93 <= covered / trials <= 0.97


def test_pairing_finds_a_small_difference_that_two_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    images = [str(n) for n in range(1000)]
    theirs = (rng.random(1000) < 0.7).astype(float)
    ours = np.where((theirs == 0) & (rng.random(1000) < 0.1), 1.0, theirs)
    paired = paired_difference(list(ours), list(theirs), images)
    assert paired.interval is not None
    assert paired.interval[0] > 0
    one, other = clustered_mean(ours, images).interval, clustered_mean(theirs, images).interval
    assert one is not None
    assert other is not None
    assert one[0] < other[1]
    with pytest.raises(InputError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


def test_auroc_counts_ordered_pairs_and_half_of_ties() -> None:
    scores, positive = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert calibration(scores, positive).auroc == pytest.approx(3.5 / 4)
    assert calibration(scores, np.array([True] * 4)).auroc is None


def test_calibration_error_by_hand() -> None:
    found = calibration(np.array([0.95, 0.95, 0.15, 1.0]), np.array([True, False, False, True]))
    # Bins: 0.1 holds one (0.15 against 0), 0.9 holds three (mean 0.9667 against 2/3): (0.15 + 3 * 0.3) / 4.
    assert found.ece == pytest.approx((0.15 + 3 * 0.3) / 4)
    assert [count for _, _, count in found.bins] == [1, 3]
