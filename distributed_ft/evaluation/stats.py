"""How sure a score is, and a difference between two models on the same items. Pure numpy; every draw is seeded."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
SEED = 20251122
Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal


@dataclass(frozen=True)
class Mean:
    """Mean of `n` scores and the standard error of that mean."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (after minus before) with its 95% bootstrap interval.

    `p` is McNemar's exact two-sided p-value, None unless both sides are right-or-wrong (0 or 1).
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None


def mean(scores: ArrayLike) -> Mean:
    """Mean and standard error (sample standard deviation / sqrt(n)) of scores in [0, 1].

    One score alone says nothing about its spread: its standard error is given as 0.5, the largest that a score in
    [0, 1] can have.
    """
    values = _values(scores)
    stderr = float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else 0.5
    return Mean(float(values.mean()), stderr, len(values))


def bootstrap(strata: Sequence[ArrayLike], seed: int = SEED, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval (Efron and Tibshirani 1993, ch. 13) of the mean of the strata's means.

    Items are drawn with replacement within each stratum (a task), so that every task keeps its weight.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for stratum in strata:
        means += _resampled_means(_values(stratum), rng, resamples)
    low, high = np.quantile(means / len(strata), [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(values: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Means of `resamples` samples with replacement, in O(distinct values) memory a resample.

    Scores have few distinct values, so counts of each value are drawn (a multinomial) instead of items.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    means: Floats = drawn @ distinct / len(values)
    return means


def paired_difference(before: ArrayLike, after: ArrayLike, seed: int = SEED) -> Difference:
    """After minus before on the same items in the same order."""
    first, second = _values(before), _values(after)
    assert first.shape == second.shape, (first.shape, second.shape)
    low, high = bootstrap([second - first], seed)
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    return Difference(float((second - first).mean()), low, high, len(first), mcnemar(first, second) if binary else None)


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947) on right-or-wrong pairs: a binomial test of the discordant."""
    first, second = _values(before), _values(after)
    lost, won = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = lost + won
    tail = sum(comb(discordant, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2**discordant))  # of Python's integers: exact, and no overflow


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; it stays inside [0, 1] and has a width at 0 and at n."""
    share, scale = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _values(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim == 1, values.shape
    assert len(values) > 0
    return values
