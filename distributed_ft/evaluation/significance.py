"""Whether a difference could be chance: exact and permutation tests, Holm over several, Student's t. Pure, seeded."""

from collections.abc import Sequence
from functools import cache
from math import atan, comb, cos, pi, sin, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FLIPS = 20_000  # draws of signs: a p of 0.05 is then known to 0.003
SEED = 20251122
_EXACT = 14  # as many differences have all their 16,384 signs counted
_MOST_DRAWN = 4_000_000  # numbers at once, 32 MB


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947) on right-or-wrong pairs: a binomial test of the discordant."""
    first, second = np.asarray(before), np.asarray(after)
    lost, won = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = lost + won
    tail = sum(comb(discordant, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2**discordant))  # of Python's integers: exact, and no overflow


def sign_flip(differences: ArrayLike, seed: int = SEED) -> float:
    """Two-sided p-value of the hypothesis that each difference is as likely as its negative (Fisher 1935, section 21).

    The share of all ways to choose the signs that give a sum as far from 0 as the one found; on right-or-wrong pairs
    that is McNemar's test. Counted where at most 14 differ, drawn otherwise, the found one among them, so that p is
    never 0 (Phipson and Smyth 2010). Of clustered items: the sums over clusters, for these are independent.
    """
    sizes, counts = np.unique(np.abs(np.asarray(differences, dtype=np.float64)), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    found = abs(float(np.sum(differences))) * (1 - 1e-9) - 1e-12  # sums that are equal but for rounding are equal
    if not len(sizes):
        return 1.0
    if counts.sum() <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** counts.sum())[:, None] >> np.arange(counts.sum())) & 1)
        return float((np.abs(signs @ np.repeat(sizes, counts)) >= found).mean())
    rng = np.random.default_rng(seed)
    flips = flips_for(len(sizes))
    at_once = max(1, _MOST_DRAWN // len(sizes))
    as_far = 0
    for start in range(0, flips, at_once):
        # of differences of one size, the number that are positive is binomial
        positive = rng.binomial(counts, 0.5, size=(min(at_once, flips - start), len(sizes)))
        as_far += int((np.abs((2 * positive - counts) @ sizes) >= found).sum())
    return (1 + as_far) / (1 + flips)


def flips_for(distinct: int) -> int:
    """Draws for so many distinct values: fewer of very many, whose mean is all but normal."""
    return max(1_000, min(FLIPS, 100_000_000 // distinct))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several: below alpha with a chance of at most alpha for any one that is true.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65-70.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


@cache
def t_quantile(probability: float, dof: int) -> float:
    """Of Student's t, for a probability of at least 0.5.

    Up to 200 degrees of freedom its distribution is summed (Abramowitz and Stegun 1972, 26.7.3 and 26.7.4) and the
    quantile is found by halving; beyond, 26.7.5, which is right to 1e-9 there.
    """
    z = NormalDist().inv_cdf(probability)
    if dof > 200:
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return sum(term / float(dof) ** power for power, term in enumerate(terms))
    low, high = 0.0, 1.0
    while _t_cdf(high, dof) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, dof) < probability else (low, middle)
    return high


def _t_cdf(t: float, dof: int) -> float:
    angle = atan(t / sqrt(dof))
    odd = dof % 2
    term = total = cos(angle) if odd else 1.0
    for k in range(2 + odd, dof - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    inside = 2 / pi * (angle + (sin(angle) * total if dof > 1 else 0.0)) if odd else sin(angle) * total
    return 0.5 + inside / 2
