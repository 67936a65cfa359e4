"""What a model lost on general items that the base could do.

The definition is sample-wise (Harmon, Hochlehnert, Bethge and Prabhu 2025, "Mapping Post-Training Forgetting in
Language Models at Scale", arXiv:2510.17776): an item is forgotten when it was right before and is wrong after (1 -> 0).
Averages hide this, for one thing learned makes up for another that is lost. Two such averages are shown beside it: the
mean drop over the suites, and backward transfer (Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual
Learning", arXiv:1706.08840, equation 3) over the skills, with the base in place of the model just after it learned
them; what they call a task is a skill here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distributed_ft.evaluation.significance import Floats, holm, t_quantile
from distributed_ft.evaluation.stats import (
    Clusters,
    Pairs,
    difference,
    finite,
    interval,
    mean,
    mean_of,
    paired_interval,
    stratified_interval,
)


@dataclass(frozen=True)
class Suite:
    """One general suite: the scores of its items before and after, in the same order; right means 1.

    `groups`: the skill of each item, or None. `chance`: probability that a guess is right (`Task.chance`).
    """

    before: Sequence[float]
    after: Sequence[float]
    groups: Sequence[str | None]
    chance: float = 0.0
    clusters: Clusters = None


@dataclass(frozen=True)
class Rate:
    """What was forgotten of some items, in [0, 1]; `low` and `high` bound 95% intervals."""

    rate: float  # share of ALL items: right before and wrong after, less what guessing explains
    low: float
    high: float
    ceiling: float  # share of the items known before, less what guessing explains: rate can be no larger
    of_known: float  # rate / ceiling; 0 if none was known
    of_known_low: float
    of_known_high: float
    n: int
    known: int  # items right before, guesses among them


@dataclass(frozen=True)
class GroupForgetting(Rate):
    """One skill; a positive drop is a loss. `p`: two-sided, of no change; `p_holm`: adjusted for all skills (Holm)."""

    before: float
    after: float
    drop: float
    drop_low: float
    drop_high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Forgetting(Rate):
    """Of one checkpoint, over all suites; a positive drop is a loss."""

    mean_drop: float  # mean score before minus mean score after; the mean over the suites where there are several
    drop_low: float
    drop_high: float
    backward_transfer: float  # mean over the skills of score after minus score before; negative where skills were lost
    backward_low: float
    backward_high: float
    before: float  # mean score before, over the suites: no drop can be larger
    by_group: Mapping[str, GroupForgetting] = field(default_factory=dict)


def forgetting(suites: Sequence[Suite]) -> Forgetting:
    """Forgetting of one model against the base, over all suites; their groups have different names.

    Raises EvaluationError for a score that is not finite.
    """
    drop = mean_of([mean(np.subtract(suite.before, suite.after)) for suite in suites]).value
    drop_low, drop_high = paired_interval([Pairs(s.after, s.before, s.clusters) for s in suites])
    transfer, low, high = _backward_transfer(suites)
    return Forgetting(
        **vars(_rate(suites)),
        mean_drop=drop,
        drop_low=drop_low,
        drop_high=drop_high,
        backward_transfer=transfer,
        backward_low=low,
        backward_high=high,
        before=mean_of([mean(suite.before) for suite in suites]).value,
        by_group=_by_group(suites),
    )


def _backward_transfer(suites: Sequence[Suite]) -> tuple[float, float, float]:
    """The mean over the skills of score after minus score before, with its interval; items without a skill are one."""
    before, after, _ = _joined(suites)
    skills = [f"{number}: {group}" for number, suite in enumerate(suites) for group in suite.groups]
    of_skill = {skill: [i for i, name in enumerate(skills) if name == skill] for skill in set(skills)}
    value = float(np.mean([(after - before)[places].mean() for places in of_skill.values()]))
    return value, *stratified_interval(Pairs(before, after, _joined_clusters(suites)), skills)


def _by_group(suites: Sequence[Suite]) -> dict[str, GroupForgetting]:
    items = {name: skill for suite in suites for name, skill in _skills(suite).items()}
    found = {name: _of_group(items[name]) for name in sorted(items)}
    adjusted = holm([group.p for group in found.values()])
    return {name: replace(group, p_holm=p) for (name, group), p in zip(found.items(), adjusted, strict=True)}


def _of_group(skill: Suite) -> GroupForgetting:
    lost = difference([Pairs(skill.after, skill.before, skill.clusters)])
    return GroupForgetting(
        **vars(_rate([skill])),
        before=mean(skill.before).value,
        after=mean(skill.after).value,
        drop=lost.value,
        drop_low=lost.low,
        drop_high=lost.high,
        p=lost.p,
        p_holm=lost.p,
    )


def _skills(suite: Suite) -> dict[str, Suite]:
    """The suite's items by skill, without those of none."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(suite.groups):
        if group is not None:
            places.setdefault(group, []).append(place)
    return {
        name: Suite(
            [suite.before[i] for i in of_skill],
            [suite.after[i] for i in of_skill],
            [name] * len(of_skill),
            suite.chance,
            None if suite.clusters is None else [suite.clusters[i] for i in of_skill],
        )
        for name, of_skill in places.items()
    }


def _rate(suites: Sequence[Suite]) -> Rate:
    """Forgotten as a share of all items, and of the items known before; never below 0.

    The response model is that of arXiv:2510.17776: an item is known, or guessed with probability c of being right. Let
    f be the share known before and not after, and u the share not known after, so that 1 - after = u (1 - c) is wrong
    after. Right, then wrong are the forgotten ones guessed wrong, f (1 - c), and of the others not known after those
    guessed right, then wrong, (u - f) c (1 - c). So f = (lost - c (1 - after)) / (1 - c)^2; for c = 0, f = lost. And of
    all items (before - c) / (1 - c) were known. Both are means over items, and so are their standard errors; without
    guessing the intervals are Wilson's.
    """
    before, after, chance = _joined(suites)
    clusters = _joined_clusters(suites)
    right, wrong = before >= 1, after < 1
    lost = right & wrong
    forgotten: Floats = (lost - chance * wrong) / (1 - chance) ** 2
    knew: Floats = (right - chance) / (1 - chance)
    least, most = float(np.min(-chance / (1 - chance) ** 2)), float(np.max(1 / (1 - chance)))
    low, high = (least + (most - least) * b for b in interval(mean((forgotten - least) / (most - least), clusters)))
    value, ceiling = float(forgotten.mean()), max(0.0, float(knew.mean()))
    of_known = _of_known(forgotten, knew, right, clusters, guessed=bool(chance.any()))
    return Rate(*_inside(value, low, high, ceiling), ceiling, *of_known, len(before), int(right.sum()))


def _of_known(
    forgotten: Floats, knew: Floats, right: np.ndarray, clusters: Clusters, guessed: bool
) -> tuple[float, float, float]:
    """Forgotten / known with its interval: a share of the known items, or with guessing a ratio of two means, whose
    standard error is that of the residuals (Cochran 1977, Sampling Techniques, section 6.4)."""
    if not right.any() or knew.mean() <= 0:
        return 0.0, 0.0, 1.0
    places = np.flatnonzero(right).tolist()
    shares = mean(forgotten[places], None if clusters is None else [clusters[i] for i in places])
    if not guessed:
        return shares.value, *interval(shares)
    ratio = float(forgotten.mean() / knew.mean())
    of_ratio = mean((forgotten - ratio * knew) / knew.mean(), clusters)
    half = t_quantile(0.975, max(1, of_ratio.units - 1)) * of_ratio.stderr
    if of_ratio.stderr < 1e-12:  # all or nothing was lost
        half = float(np.subtract(*interval(replace(shares, value=0.0, stderr=0.0))[::-1]))
    value, low, high = _inside(ratio, ratio - half, ratio + half, 1.0)
    return value, low, min(1.0, high)


def _inside(value: float, low: float, high: float, most: float) -> tuple[float, float, float]:
    """An estimate below 0, or above what there is, is chance: it is one of 0, or of all, as uncertain as it was."""
    inside = min(max(0.0, value), most)
    shift = inside - value
    return inside, max(0.0, low + min(0.0, shift)), high + max(0.0, shift)


def _joined(suites: Sequence[Suite]) -> tuple[Floats, Floats, Floats]:
    """Scores before and after, and the chance of each item."""
    for suite in suites:
        assert len(suite.before) == len(suite.after) == len(suite.groups) > 0
    before = np.concatenate([finite(suite.before) for suite in suites])
    after = np.concatenate([finite(suite.after) for suite in suites])
    return before, after, np.concatenate([np.full(len(suite.before), suite.chance) for suite in suites])


def _joined_clusters(suites: Sequence[Suite]) -> Clusters:
    """Of all items; a cluster's name means nothing outside its suite."""
    if all(suite.clusters is None for suite in suites):
        return None
    return [
        None if name is None else f"{number}: {name}"
        for number, suite in enumerate(suites)
        for name in (suite.clusters or [None] * len(suite.before))
    ]
