"""Which checkpoint to ship, how many examples to show, when to stop training: one rule for better. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distributed_ft.evaluation.stats import paired_interval


@dataclass(frozen=True)
class Candidate:
    """One checkpoint's scores.

    `tasks`: the score of every item, by task; the same items in the same order for every candidate. `mean_drop`: on the
    general suite, positive for a loss; None without such a suite.
    """

    step: int
    tasks: Mapping[str, Sequence[float]]
    mean_drop: float | None

    @property
    def accuracy(self) -> float:
        """Mean over the tasks of each task's mean score."""
        return float(np.mean([np.mean(scores) for scores in self.tasks.values()]))


TIE = 0.01  # of accuracy: what nobody would train longer for
SLACK = 1e-12  # no choice is a matter of rounding


@dataclass(frozen=True)
class Selection:
    """`step` is None when no checkpoint can be recommended; `reason` says why it is what it is."""

    step: int | None
    reason: str


def select(candidates: Sequence[Candidate], forgetting_budget: float) -> Selection:
    """The checkpoint that BEST should name.

    Of those whose mean drop is at most `forgetting_budget`, the most accurate one, unless an earlier one is as good:
    within noise (the 95% interval of their paired difference includes 0) and within TIE, for on few items noise alone
    would let a far worse one win. Then the earliest such.
    """
    if not candidates:
        return Selection(None, "no checkpoint was scored")
    if not any(c.tasks for c in candidates):
        return Selection(None, "evaluation.tasks is empty: there is no task accuracy to choose by")
    kept = sorted((c for c in candidates if inside(c, forgetting_budget)), key=lambda c: c.step)
    if not kept:
        least = min(candidates, key=lambda c: c.mean_drop or 0.0)
        return Selection(
            None,
            f"no checkpoint is inside the forgetting budget: the smallest mean drop on the general suite is "
            f"{least.mean_drop:.3f} (step {least.step}), the budget {forgetting_budget:g}",
        )
    chosen, top = earliest_as_good(kept)
    share = f"{len(kept)} of {len(candidates)} checkpoints inside the forgetting budget of {forgetting_budget:g}"
    if chosen is top:
        return Selection(top.step, f"highest task accuracy, {top.accuracy:.3f}, among {share}")
    return Selection(
        chosen.step,
        f"task accuracy {chosen.accuracy:.3f} is within noise of the highest, {top.accuracy:.3f} at step {top.step}, "
        f"and it is earlier; among {share}",
    )


def earliest_as_good(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    """Of some in the order of steps: the first that is as good as the most accurate one, and that one."""
    top = max(candidates, key=lambda c: c.accuracy)  # max keeps the first, so the earlier at a tie
    return next(c for c in candidates if c is top or _within_noise(c, top)), top


def inside(candidate: Candidate, forgetting_budget: float) -> bool:
    """Whether the checkpoint kept enough of the general suite; nothing can be lost without one."""
    return candidate.mean_drop is None or candidate.mean_drop <= forgetting_budget + SLACK


def _within_noise(earlier: Candidate, top: Candidate) -> bool:
    low, _ = paired_interval([(scores, top.tasks[name]) for name, scores in earlier.tasks.items()])
    return low <= SLACK and top.accuracy - earlier.accuracy <= TIE + SLACK


@dataclass(frozen=True)
class Trend:
    """How the checkpoints of a training went: `waited` of them in a row, up to the newest, were no better than the best
    before them, which is of `best_step` (None: none is inside the forgetting budget)."""

    newest_step: int
    best_step: int | None
    waited: int


def trend(candidates: Sequence[Candidate], forgetting_budget: float, min_delta: float) -> Trend | None:
    """Where the training stands; None without a score. Better is more than `min_delta` above the best before, inside
    the budget: what has forgotten too much cannot be shipped, and to train on does not bring it back."""
    best, found, newest = -math.inf, None, None
    for candidate in sorted((c for c in candidates if c.tasks), key=lambda c: c.step):
        waited = 0 if newest is None else newest.waited
        better = inside(candidate, forgetting_budget) and candidate.accuracy > best + min_delta + SLACK
        if better:
            best, found = candidate.accuracy, candidate.step
        newest = Trend(candidate.step, found, 0 if better else waited + 1)
    return newest
