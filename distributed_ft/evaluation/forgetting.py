"""What a model lost on general items that the base could do.

The definition is sample-wise (Harmon, Hochlehnert, Bethge and Prabhu 2025, "Mapping Post-Training Forgetting in
Language Models at Scale", arXiv:2510.17776): an item is forgotten when it was right before and is wrong after (1 -> 0).
Averages hide this, for one thing learned makes up for another that is lost. The mean drop shown beside it is such an
average: the negative of backward transfer (Lopez-Paz and Ranzato 2017, arXiv:1706.08840) with the base in place of the
model just after it learned the old tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from distributed_ft.evaluation.stats import RESAMPLES, SEED, Floats, bootstrap


@dataclass(frozen=True)
class Forgetting:
    """Rates in [0, 1]; `low` and `high` bound 95% paired bootstrap intervals; a positive drop is a loss."""

    rate: float  # share of ALL items: right before and wrong after, less what guessing explains
    low: float
    high: float
    of_known: float  # the same items as a share of those that were right before; 0 if none was
    of_known_low: float
    of_known_high: float
    mean_drop: float  # mean score before minus mean score after
    drop_low: float
    drop_high: float
    n: int
    known: int  # items right before: without guessing, rate is at most known / n
    by_group: dict[str, "GroupForgetting"] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupForgetting:
    """One skill: mean scores, and the share of its items that are right before and wrong after (not corrected)."""

    before: float
    after: float
    rate: float
    n: int


def forgetting(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[str | None],
    chance: float = 0.0,
    seed: int = SEED,
) -> Forgetting:
    """Forgetting of one model against the base, on the same items in the same order.

    Args:
        before: the base's score of each item; right means 1.
        after: the tuned model's.
        groups: the skill of each item, or None.
        chance: probability that a guess is right: 0 for generated text, 1/k for k choices.
    """
    assert len(before) == len(after) == len(groups) > 0
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    kinds = 2 * (first >= 1) + (second >= 1)  # 0: wrong, wrong; 1: won; 2: lost; 3: kept
    counts = np.bincount(kinds, minlength=4)
    n = len(first)
    rate, of_known = (float(x[0]) for x in _rates(counts[None] / n, chance))
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES) / n  # pairs, with replacement
    (low, high), (known_low, known_high) = (np.quantile(x, [0.025, 0.975]) for x in _rates(drawn, chance))
    drop_low, drop_high = bootstrap([first - second], seed)
    return Forgetting(
        rate=rate,
        low=float(low),
        high=float(high),
        of_known=of_known,
        of_known_low=float(known_low),
        of_known_high=float(known_high),
        mean_drop=float((first - second).mean()),
        drop_low=drop_low,
        drop_high=drop_high,
        n=n,
        known=int(counts[2] + counts[3]),
        by_group=_by_group(first, second, groups),
    )


def _rates(shares: Floats, chance: float) -> tuple[Floats, Floats]:
    """Forgotten as a share of all items, and of the items known before; never below 0.

    The response model is that of arXiv:2510.17776: an item is known, or guessed with probability c of being right. Let
    f be the share known before and not after, and u the share not known after, so that 1 - after = u (1 - c) is wrong
    after. Right, then wrong are the forgotten ones guessed wrong, f (1 - c), and of the others not known after those
    guessed right, then wrong, (u - f) c (1 - c). So f = (lost - c (1 - after)) / (1 - c)^2; for c = 0, f = lost.

    Args:
        shares: (draws, 4): wrong-wrong, won, lost, kept.
    """
    won, lost, kept = shares[:, 1], shares[:, 2], shares[:, 3]
    rates: Floats = np.maximum(0.0, lost - chance * (1 - won - kept)) / (1 - chance) ** 2
    known = np.maximum(0.0, (lost + kept - chance) / (1 - chance))  # the ceiling of the rate
    of_known: Floats = np.divide(rates, known, out=np.zeros_like(rates), where=known > 0)
    return rates, np.minimum(1.0, of_known)


def _by_group(before: Floats, after: Floats, groups: Sequence[str | None]) -> dict[str, GroupForgetting]:
    found: dict[str, GroupForgetting] = {}
    for group in sorted({g for g in groups if g is not None}):
        of_group = np.array([g == group for g in groups])
        first, second = before[of_group], after[of_group]
        lost = float(((first >= 1) & (second < 1)).mean())
        found[group] = GroupForgetting(float(first.mean()), float(second.mean()), lost, len(first))
    return found
