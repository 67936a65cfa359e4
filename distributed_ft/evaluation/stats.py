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
    """Mean of paired differences (after minus before) with its 95% interval: see `paired_interval`.

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


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean over several tasks or suites, each counting the same, whatever its size."""
    stderr = sqrt(sum(m.stderr**2 for m in means)) / len(means)
    return Mean(sum(m.value for m in means) / len(means), stderr, sum(m.n for m in means))


def bootstrap(values: ArrayLike, seed: int = SEED, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval of a mean (Efron and Tibshirani 1993, ch. 13), in O(distinct values) memory a resample.

    Scores have few distinct values, so counts of each value are drawn (a multinomial) instead of items.
    """
    distinct, counts = np.unique(_values(values), return_counts=True)
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(drawn @ distinct / n, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(before: ArrayLike, after: ArrayLike) -> Difference:
    """After minus before on the same items in the same order."""
    first, second = _pair(before, after)
    low, high = paired_interval([(first, second)])
    p = mcnemar(first, second) if _binary(first, second) else None
    return Difference(float((second - first).mean()), low, high, len(first), p)


def paired_interval(strata: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[float, float]:
    """95% interval of after minus before, as the mean over strata (tasks, suites) that count the same.

    Within a stratum: Newcombe's where items are right or wrong, else the bootstrap's. Across strata, which are
    independent, the distances from estimate to bound are squared and added (MOVER; Zou and Donner 2008, Statistics in
    Medicine 27:1693-1702). It never has width zero: items that all went one way are no proof that others would.

    Args:
        strata: (before, after) of each, scores in [0, 1] of the same items in the same order.
    """
    middle = below = above = 0.0
    for before, after in strata:
        first, second = _pair(before, after)
        value = float((second - first).mean())
        low, high = newcombe(first, second) if _binary(first, second) else _of_partial_credit(second - first)
        middle, below, above = middle + value, below + (value - low) ** 2, above + (high - value) ** 2
    return (middle - sqrt(below)) / len(strata), (middle + sqrt(above)) / len(strata)


def newcombe(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """95% interval of the difference of two shares of right answers (after minus before) of the same items.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17:2635-2650, method 10: Wilson's intervals of both shares, joined with the
    correlation phi of the pairs, which is corrected for continuity.
    """
    first, second = _pair(before, after)
    n, right_before, right_after = len(first), int(first.sum()), int(second.sum())
    kept = int((first * second).sum())
    lost, won = right_before - kept, right_after - kept
    wrong = n - kept - lost - won
    p, q = right_after / n, right_before / n
    (p_low, p_high), (q_low, q_high) = wilson(right_after, n), wilson(right_before, n)
    covariance: float = kept * wrong - lost * won
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    spread = sqrt(right_after * (n - right_after) * right_before * (n - right_before))
    phi = covariance / spread if spread else 0.0
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    return p - q - sqrt(below), p - q + sqrt(above)


def _of_partial_credit(differences: Floats) -> tuple[float, float]:
    """The bootstrap's interval. When all items differ by the same amount, which it would take for certainty: as far as
    the share of unlike items that Wilson's interval still allows after 0 of n could move the mean, to -1 or to 1."""
    low, high = bootstrap(differences)
    if low < high:
        return low, high
    value, unlike = float(differences.mean()), wilson(0, len(differences))[1]
    return value - unlike * (1 + value), value + unlike * (1 - value)


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
    return 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half  # rounding aside


def _pair(before: ArrayLike, after: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _values(before), _values(after)
    assert first.shape == second.shape, (first.shape, second.shape)
    return first, second


def _binary(first: Floats, second: Floats) -> bool:
    return bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())


def _values(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim == 1, values.shape
    assert len(values) > 0
    return values
