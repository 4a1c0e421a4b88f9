"""Statistics over a judge's scores: mean with an interval, paired gain, and the win rate against another model.

Intervals are percentile bootstraps over prompts (Efron 1979) with a fixed seed, so a report is the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
_SEED = 20_210_907
_CHUNK = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % bootstrap interval and the standard deviation of the single values."""

    mean: float
    low: float
    high: float
    std: float
    """Standard deviation (divisor n - 1; 0 for a single value)."""
    count: int


@dataclass(frozen=True)
class WinRate:
    """How often a model's answer is scored strictly higher than the other's; a tie counts half."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of `values` (one per prompt) with its interval. Raises ValueError if there are none or one is not finite."""
    array = _finite(values)
    low, high = _bootstrap_interval(array)
    std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Estimate(float(array.mean()), low, high, std, len(array))


def gain(scores: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Mean of the paired differences `scores[i] - baseline[i]`. Raises ValueError on different lengths or no pairs."""
    ours, theirs = _pairs(scores, baseline)
    return estimate((ours - theirs).tolist())


def win_rate(scores: Sequence[float], baseline: Sequence[float]) -> WinRate:
    """Win rate of `scores` over `baseline`, paired by prompt. Raises ValueError on different lengths or no pairs."""
    ours, theirs = _pairs(scores, baseline)
    points = np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0))
    low, high = _bootstrap_interval(points)
    wins, ties = int((ours > theirs).sum()), int((ours == theirs).sum())
    return WinRate(float(points.mean()), low, high, wins, ties, len(points) - wins - ties)


def _pairs(
    scores: Sequence[float], baseline: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(scores) != len(baseline):
        raise ValueError(f"{len(scores)} scores cannot be paired with {len(baseline)} of the baseline")
    return _finite(scores), _finite(baseline)


def _finite(values: Sequence[float]) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError("scores must be finite numbers, at least one")
    return array


def _bootstrap_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of the mean over resamples of the prompts."""
    rng = np.random.default_rng(_SEED)
    count = len(values)
    per_chunk = max(1, _CHUNK // count)
    means = np.concatenate(
        [
            values[rng.integers(count, size=(min(per_chunk, RESAMPLES - start), count))].mean(axis=1)
            for start in range(0, RESAMPLES, per_chunk)
        ]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
