"""How sure a score is, and a difference between two models on the same items. Pure numpy; every draw is seeded.

Items of one cluster (questions about one passage, turns of one conversation) are not independent: as many clusters say
less than as many items. Everything here takes the cluster of each item, None for an item that stands alone, and is
what it always was where all do. Which interval holds where is measured in benchmarks/interval_coverage.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.significance import SEED, Floats, flips_for, mcnemar, sign_flip, t_quantile
from distributed_ft.records import TaskResult

Clusters = Sequence[str | None] | None
Test = Literal["mcnemar", "sign_flip"]

RESAMPLES = 10_000
Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal
_MOST_DRAWN = 4_000_000  # numbers at once, 32 MB


@dataclass(frozen=True)
class Mean:
    """Mean of `n` scores and the standard error of that mean; `units`: clusters, or items where each stands alone."""

    value: float
    stderr: float
    n: int
    units: int


class Pairs(NamedTuple):
    """Scores of the same items in the same order, of one task or suite."""

    before: ArrayLike
    after: ArrayLike
    clusters: Clusters = None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (after minus before) with its 95% interval: see `paired_interval`.

    `p` is two-sided: McNemar's exact test where all items are right or wrong (0 or 1) and stand alone, else the
    sign-flip test, of clusters. `detectable`: see `detectable`.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    units: int
    p: float
    test: Test
    detectable: float


# --- one score -----------------------------------------------------------------------------------------------------


def mean(scores: ArrayLike, clusters: Clusters = None, spread: float = 1.0) -> Mean:
    """Mean of scores and its standard error, which is robust to clusters.

    That of Miller 2024, "Adding error bars to evals", arXiv:2411.00640, equation 4, in which the residuals are summed
    within clusters before they are squared; with G / (G - 1) of G clusters for n / (n - 1), as is usual, for 4 alone is
    too small where there are few. Without clusters it is the sample standard deviation / sqrt(n).

    Raises EvaluationError for a score that is not finite.

    Args:
        spread: largest score minus smallest possible one: a single unit says nothing, and gets the largest error.
    """
    values = finite(scores)
    residuals = _sums(values - values.mean(), _units(clusters, len(values)))
    count = len(residuals)
    stderr = sqrt(count / (count - 1) * float((residuals**2).sum())) / len(values) if count > 1 else spread / 2
    return Mean(float(values.mean()), stderr, len(values), count)


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean over several tasks or suites, each counting the same, whatever its size."""
    stderr = sqrt(sum(m.stderr**2 for m in means)) / len(means)
    value = sum(m.value for m in means) / len(means)
    return Mean(value, stderr, sum(m.n for m in means), sum(m.units for m in means))


def interval(score: Mean) -> tuple[float, float]:
    """95% interval of a mean of scores in [0, 1].

    Wilson's, with the effective number of items: so many right-or-wrong items that stand alone would have this standard
    error (Korn and Graubard 1998; Franco, Little, Louis and Slud 2019, Journal of Survey Statistics and Methodology
    7:334-364). Of right-or-wrong items that stand alone it is their number, and the interval Wilson's own; more with
    partial credit, fewer in clusters, and then with Student's t for the normal quantile. A mean outside [0, 1] (not of
    scores) has Student's interval.
    """
    dof = max(1, score.units - 1)
    if not 0 <= score.value <= 1:
        half = t_quantile(0.975, dof) * score.stderr
        return score.value - half, score.value + half
    if score.stderr < 1e-12 or score.units == 1:
        return _of_alike(score.value, score.units)
    effective = score.value * (1 - score.value) / score.stderr**2 * score.units / (score.units - 1)
    plain = score.units == score.n and abs(effective - score.n) < 1e-6 * score.n
    low, high = wilson(score.value * effective, effective, Z95 if plain else t_quantile(0.975, dof))
    return max(0.0, low), min(1.0, high)


def interval_of(result: TaskResult) -> tuple[float, float]:
    """The same of a stored result: its score's, over its clusters where it has any."""
    units = result.n if result.clusters is None else result.clusters
    return interval(Mean(result.score, result.stderr, result.n, units))


def _of_alike(value: float, units: int) -> tuple[float, float]:
    """Of scores that are all the same, which are no proof that others would be: as far as the share of unlike items
    that Wilson's interval still allows after 0 of so many could move the mean, to 0 or to 1."""
    unlike = wilson(0, units)[1]
    return value - unlike * value, value + unlike * (1 - value)


def wilson(right: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; it stays inside [0, 1] and has a width at 0 and at n."""
    share, scale = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half  # rounding aside


def bootstrap(
    values: ArrayLike, clusters: Clusters = None, seed: int = SEED, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95% percentile interval of a mean (Efron and Tibshirani 1993, ch. 13); clusters are drawn whole.

    Too narrow on fewer than some 100 items, and of width 0 where all are alike: it is shown beside the others, not
    decided by. Scores have few distinct values, so counts of each are drawn (a multinomial) instead of items.
    """
    scores = finite(values)
    units = _units(clusters, len(scores))
    of_unit = np.stack([_sums(scores, units), _sums(np.ones(len(scores)), units)])  # sum and size
    distinct, counts = np.unique(of_unit, axis=1, return_counts=True)
    number = len(counts)
    rng, shares = np.random.default_rng(seed), counts / counts.sum()
    wanted, at_once = min(resamples, flips_for(number)), max(1, _MOST_DRAWN // number)
    means = []
    for start in range(0, wanted, at_once):
        drawn = rng.multinomial(counts.sum(), shares, size=min(at_once, wanted - start))
        sums, sizes = distinct @ drawn.T
        means.append(sums / sizes)
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


# --- two models ----------------------------------------------------------------------------------------------------


def paired_difference(before: ArrayLike, after: ArrayLike, clusters: Clusters = None) -> Difference:
    """After minus before on the same items in the same order."""
    return difference([Pairs(before, after, clusters)])


def difference(strata: Sequence[Pairs]) -> Difference:
    """After minus before, as the mean over strata (tasks, suites) that count the same."""
    means, shifts = [], []
    for pairs in strata:
        first, second = _pair(pairs.before, pairs.after)
        means.append(mean(second - first, pairs.clusters, spread=2.0))
        shifts.append(_sums(second - first, _units(pairs.clusters, len(first))) / len(first) / len(strata))
    gain = mean_of(means)
    low, high = paired_interval(strata)
    exact = len(strata) == 1 and _alone_and_binary(strata[0])
    p = mcnemar(strata[0].before, strata[0].after) if exact else sign_flip(np.concatenate(shifts))
    test: Test = "mcnemar" if exact else "sign_flip"
    found = detectable(gain.stderr, gain.units, len(strata))
    return Difference(gain.value, gain.stderr, low, high, gain.n, gain.units, p, test, found)


def detectable(stderr: float, units: int, strata: int = 1) -> float:
    """The smallest true difference that a test of so many units finds four times out of five.

    2.8 standard errors (two-sided 5%, power 80%: 1.96 + 0.84; Miller 2024, arXiv:2411.00640, section 5), by Student's t
    a little more where the units are few; and at least five of them: with fewer that differ, the interval contains 0.
    """
    dof = max(1, units - strata)
    return min(1.0, max((t_quantile(0.975, dof) + t_quantile(0.8, dof)) * stderr, 5 / units))


def paired_interval(strata: Sequence[tuple[ArrayLike, ArrayLike] | Pairs]) -> tuple[float, float]:
    """95% interval of after minus before, as the mean over strata (tasks, suites) that count the same.

    Within a stratum: Newcombe's where items are right or wrong and stand alone, else that of `_gains_less_losses`.
    Across strata, which are independent, the distances from estimate to bound are squared and added (MOVER; Zou and
    Donner 2008, Statistics in Medicine 27:1693-1702). It never has width zero: items that all went one way are no proof
    that others would.

    Args:
        strata: (before, after), or with the clusters too, of each; scores in [0, 1].
    """
    middle = below = above = 0.0
    for stratum in strata:
        pairs = Pairs(*stratum)
        first, second = _pair(pairs.before, pairs.after)
        value = float((second - first).mean())
        if _alone_and_binary(pairs):
            low, high = newcombe(first, second)
        else:
            low, high = _gains_less_losses(second - first, pairs.clusters)
        middle, below, above = middle + value, below + (value - low) ** 2, above + (high - value) ** 2
    return (middle - sqrt(below)) / len(strata), (middle + sqrt(above)) / len(strata)


def stratified_interval(pairs: Pairs, strata: Sequence[str]) -> tuple[float, float]:
    """95% interval of after minus before, as the mean over the strata that count the same, of which each item names its
    own. For many small ones: what `paired_interval` leaves open in each would add up to far too much."""
    first, second = _pair(pairs.before, pairs.after)
    _, of_item, sizes = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    weights = len(first) / len(sizes) / sizes[of_item]
    largest = float(weights.max())
    # items that are alone in theirs say nothing of its spread: they are taken for one
    _, of_item = np.unique(np.where(sizes[of_item] == 1, -1, of_item), return_inverse=True)
    low, high = _gains_less_losses((second - first) * weights / largest, pairs.clusters, of_item)
    return low * largest, high * largest


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
    covariance: float = kept * wrong - lost * won
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    spread = sqrt(right_after * (n - right_after) * right_before * (n - right_before))
    phi = covariance / spread if spread else 0.0
    return _mover(right_after / n, wilson(right_after, n), right_before / n, wilson(right_before, n), phi)


def _gains_less_losses(
    differences: Floats, clusters: Clusters, strata: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """The mean gain of the items that gained less the mean loss of those that lost, each with the interval of a score,
    joined with their correlation; of clusters where there are some, around the means of strata where there are some.
    Where few items differ, a bootstrap or Student's interval misses the truth far too often; this one does not."""
    units = _units(clusters, len(differences))
    gain, of_gain = _within(np.maximum(differences, 0.0), units, strata)
    loss, of_loss = _within(np.maximum(-differences, 0.0), units, strata)
    scale = sqrt(float((of_gain**2).sum() * (of_loss**2).sum()))
    correlation = float((of_gain * of_loss).sum()) / scale if scale > 1e-12 else 0.0
    return _mover(gain.value, interval(gain), loss.value, interval(loss), correlation)


def _within(values: Floats, units: NDArray[np.int64] | None, strata: NDArray[np.int64] | None) -> tuple[Mean, Floats]:
    """The mean, its units less those that the strata cost, and the residuals of each unit from its stratum's mean."""
    centre: Floats | float = float(values.mean())
    number = 1
    if strata is not None:
        sizes = np.bincount(strata)
        centre, number = (np.bincount(strata, weights=values) / sizes)[strata], len(sizes)
    residuals = _sums(values - centre, units)
    left = len(residuals) - number
    if left < 1:  # too few units to tell
        return Mean(float(values.mean()), 0.5, len(values), 1), residuals
    stderr = sqrt(len(residuals) / left * float((residuals**2).sum())) / len(values)
    return Mean(float(values.mean()), stderr, len(values), left + 1), residuals


def _mover(
    p: float, of_p: tuple[float, float], q: float, of_q: tuple[float, float], correlation: float
) -> tuple[float, float]:
    """The interval of p - q from those of p and q (method of variance estimates recovery)."""
    (p_low, p_high), (q_low, q_high) = of_p, of_q
    below = (p - p_low) ** 2 - 2 * correlation * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * correlation * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    return p - q - sqrt(max(0.0, below)), p - q + sqrt(max(0.0, above))


# --- values and clusters -------------------------------------------------------------------------------------------


def _alone_and_binary(pairs: Pairs) -> bool:
    first, second = _pair(pairs.before, pairs.after)
    binary = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    return bool(binary) and _units(pairs.clusters, len(first)) is None


def _pair(before: ArrayLike, after: ArrayLike) -> tuple[Floats, Floats]:
    first, second = finite(before), finite(after)
    assert first.shape == second.shape, (first.shape, second.shape)
    return first, second


def finite(scores: ArrayLike) -> Floats:
    """As an array. Raises EvaluationError for a score that is not: it would read as wrong, or spoil every mean."""
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim == 1, values.shape
    assert len(values) > 0
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise EvaluationError(
            f"{len(wrong)} of {len(values)} scores are not numbers, the first is {values[wrong[0]]} of item "
            f"{wrong[0] + 1}; a mean of them would be wrong: correct what scores the answers"
        )
    return values


def _units(clusters: Clusters, n: int) -> NDArray[np.int64] | None:
    """The number of the unit that each item belongs to; None where each item is one."""
    if clusters is None:
        return None
    assert len(clusters) == n, (len(clusters), n)
    numbers: dict[str | int, int] = {}
    of_item = [numbers.setdefault(i if name is None else name, len(numbers)) for i, name in enumerate(clusters)]
    return None if len(numbers) == n else np.array(of_item)


def _sums(values: Floats, units: NDArray[np.int64] | None) -> Floats:
    """Over the items of each unit."""
    return values if units is None else np.bincount(units, weights=values).astype(np.float64, copy=False)
