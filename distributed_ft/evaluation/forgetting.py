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

from distributed_ft.evaluation.stats import RESAMPLES, SEED, Floats, mean, mean_of, paired_interval, wilson


@dataclass(frozen=True)
class Suite:
    """One general suite: the scores of its items before and after, in the same order; right means 1.

    `groups`: the skill of each item, or None. `chance`: probability that a guess is right (`Task.chance`).
    """

    before: Sequence[float]
    after: Sequence[float]
    groups: Sequence[str | None]
    chance: float = 0.0


@dataclass(frozen=True)
class Forgetting:
    """Rates in [0, 1]; `low` and `high` bound 95% intervals; a positive drop is a loss."""

    rate: float  # share of ALL items: right before and wrong after, less what guessing explains
    low: float
    high: float
    of_known: float  # the same items as a share of those that were right before; 0 if none was
    of_known_low: float
    of_known_high: float
    mean_drop: float  # mean score before minus mean score after; the mean over the suites where there are several
    drop_low: float
    drop_high: float
    n: int
    known: int  # items right before: without guessing, rate is at most known / n
    before: float  # mean score before, over the suites: no drop can be larger
    by_group: dict[str, "GroupForgetting"] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupForgetting:
    """One skill: mean scores, and the share of its items that are right before and wrong after (not corrected)."""

    before: float
    after: float
    rate: float
    n: int


def forgetting(suites: Sequence[Suite], seed: int = SEED) -> Forgetting:
    """Forgetting of one model against the base, over all suites; their groups have different names."""
    counts = np.array([_counts(suite) for suite in suites])
    n, known = int(counts.sum()), int(counts[:, 2:].sum())
    chances = np.array([suite.chance for suite in suites])
    rate, of_known = (float(x[0]) for x in _rates(counts[None], chances))
    bounds = _by_wilson(counts) if not chances.any() else _by_bootstrap(counts, chances, seed)
    drop_low, drop_high = paired_interval([(suite.after, suite.before) for suite in suites])
    before = mean_of([mean(suite.before) for suite in suites]).value
    drop = mean_of([mean(np.subtract(suite.before, suite.after)) for suite in suites]).value
    groups = _by_group(suites)
    return Forgetting(rate, *bounds[0], of_known, *bounds[1], drop, drop_low, drop_high, n, known, before, groups)


def _counts(suite: Suite) -> list[int]:
    """Items wrong both times, won, lost, kept."""
    assert len(suite.before) == len(suite.after) == len(suite.groups) > 0
    kinds = 2 * (np.asarray(suite.before) >= 1) + (np.asarray(suite.after) >= 1)
    return [int(count) for count in np.bincount(kinds, minlength=4)]


def _by_wilson(counts: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Without guessing both rates are plain shares of items."""
    _, _, lost, kept = (int(x) for x in counts.sum(axis=0))
    return wilson(lost, int(counts.sum())), wilson(lost, lost + kept) if lost + kept else (0.0, 1.0)


def _by_bootstrap(counts: np.ndarray, chances: Floats, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Pairs drawn with replacement within each suite."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.multinomial(c.sum(), c / c.sum(), size=RESAMPLES) for c in counts], axis=1)
    (low, high), (known_low, known_high) = (np.quantile(x, [0.025, 0.975]) for x in _rates(drawn, chances))
    return (float(low), float(high)), (float(known_low), float(known_high))


def _rates(counts: np.ndarray, chances: Floats) -> tuple[Floats, Floats]:
    """Forgotten as a share of all items, and of the items known before; never below 0.

    The response model is that of arXiv:2510.17776: an item is known, or guessed with probability c of being right. Let
    f be the share known before and not after, and u the share not known after, so that 1 - after = u (1 - c) is wrong
    after. Right, then wrong are the forgotten ones guessed wrong, f (1 - c), and of the others not known after those
    guessed right, then wrong, (u - f) c (1 - c). So f = (lost - c (1 - after)) / (1 - c)^2; for c = 0, f = lost.

    Args:
        counts: (draws, suites, 4): items wrong both times, won, lost, kept.
        chances: (suites,)
    """
    wrong, won, lost, kept = (counts[..., kind] for kind in range(4))
    forgotten = np.maximum(0.0, lost - chances * (wrong + lost)) / (1 - chances) ** 2
    knew = np.maximum(0.0, lost + kept - chances * (wrong + won + lost + kept)) / (1 - chances)
    rates: Floats = forgotten.sum(axis=1) / counts.sum(axis=(1, 2))
    known = knew.sum(axis=1)  # the ceiling of what can be forgotten
    of_known: Floats = np.divide(forgotten.sum(axis=1), known, out=np.zeros_like(rates), where=known > 0)
    return rates, np.minimum(1.0, of_known)


def _by_group(suites: Sequence[Suite]) -> dict[str, GroupForgetting]:
    items: dict[str, list[tuple[float, float]]] = {}
    for suite in suites:
        for before, after, group in zip(suite.before, suite.after, suite.groups, strict=True):
            if group is not None:
                items.setdefault(group, []).append((before, after))
    found = {}
    for group in sorted(items):
        first, second = np.array(items[group], dtype=np.float64).T
        lost = float(((first >= 1) & (second < 1)).mean())
        found[group] = GroupForgetting(float(first.mean()), float(second.mean()), lost, len(first))
    return found
