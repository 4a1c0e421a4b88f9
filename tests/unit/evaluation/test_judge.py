"""The judge's statistics: exact where they are exact, and intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from camel_ray.evaluation.judge import estimate, gain, win_rate


def test_a_win_is_strictly_higher_and_a_tie_counts_half() -> None:
    got = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0])
    assert (got.wins, got.ties, got.losses) == (2, 1, 1)
    assert got.rate == pytest.approx(0.625)
    assert got.low <= got.rate <= got.high


def test_equal_models_win_half_with_no_width() -> None:
    got = win_rate([0.5] * 8, [0.5] * 8)
    assert (got.rate, got.low, got.high) == (0.5, 0.5, 0.5)


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400).tolist()
    got = estimate(values)
    half = 1.96 * got.std / 20
    assert got.std == pytest.approx(np.std(values, ddof=1))
    assert got.low == pytest.approx(got.mean - half, abs=0.03)
    assert got.high == pytest.approx(got.mean + half, abs=0.03)


def test_intervals_cover_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    covered = [e.low <= 0.0 <= e.high for e in (estimate(rng.normal(size=40).tolist()) for _ in range(200))]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_the_same_scores_give_the_same_interval() -> None:
    assert estimate([1.0, 5.0, 2.0]) == estimate([1.0, 5.0, 2.0])


def test_gain_is_paired_so_a_constant_shift_has_no_width() -> None:
    got = gain([1.5, 2.5, 9.5], [1.0, 2.0, 9.0])
    assert (got.mean, got.low, got.high, got.count) == (0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [0.0])])
def test_scores_that_cannot_be_compared_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        win_rate(ours, theirs)
