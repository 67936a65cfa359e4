"""Which checkpoint to ship, how many examples to show, when to stop training: one rule for better. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distributed_ft.evaluation.stats import Clusters, Pairs, paired_interval
from distributed_ft.records import SCHEMA, StopVerdict


@dataclass(frozen=True)
class Candidate:
    """One checkpoint's scores.

    `tasks`: the score of every item, by task; the same items in the same order for every candidate. `mean_drop`: on the
    general suite, positive for a loss; None without such a suite.
    """

    step: int
    tasks: Mapping[str, Sequence[float]]
    mean_drop: float | None
    clusters: Mapping[str, Clusters] = field(default_factory=dict)  # of the items, by task

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
    low, _ = paired_interval([Pairs(s, top.tasks[name], top.clusters.get(name)) for name, s in earlier.tasks.items()])
    return low <= SLACK and top.accuracy - earlier.accuracy <= TIE + SLACK


@dataclass(frozen=True)
class Trend:
    """How the checkpoints of a training went: `waited` of them in a row, up to the newest, were no better than the best
    before them, which is `best` (None: none is inside the forgetting budget)."""

    newest_step: int
    best: Candidate | None
    waited: int


def trend(candidates: Sequence[Candidate], forgetting_budget: float, min_delta: float) -> Trend | None:
    """Where the training stands; None without a score. Better is more than `min_delta` above the best before, inside
    the budget: what has forgotten too much cannot be shipped."""
    found: Trend | None = None
    for candidate in sorted((c for c in candidates if c.tasks), key=lambda c: c.step):
        best, waited = (found.best, found.waited) if found else (None, 0)
        rise = math.inf if best is None else candidate.accuracy - best.accuracy
        if inside(candidate, forgetting_budget) and rise > min_delta + SLACK:
            found = Trend(candidate.step, candidate, 0)
        else:
            found = Trend(candidate.step, best, waited + 1)
    return found


def stop_verdict(
    candidates: Sequence[Candidate], forgetting_budget: float, patience: int, min_delta: float
) -> StopVerdict | None:
    """Whether more steps of training help: not when `patience` checkpoints in a row were no better. None without a
    score."""
    stands = trend(candidates, forgetting_budget, min_delta)
    if stands is None:
        return None
    so_long = f"{stands.waited} checkpoint{'' if stands.waited == 1 else 's'} in a row"
    if stands.best is None:
        reason = f"{so_long} over the forgetting budget of {forgetting_budget:g}, and none inside it before"
    elif stands.waited == 0:
        reason = f"task accuracy has risen to {stands.best.accuracy:.3f}"
    else:
        rise = f" by more than {min_delta:g}" if min_delta else ""
        reason = (
            f"task accuracy has not risen{rise} over {stands.best.accuracy:.3f} of step {stands.best.step}, inside the "
            f"forgetting budget, for {so_long}"
        )
    best_step = None if stands.best is None else stands.best.step
    stop = stands.waited >= patience
    return StopVerdict(schema=SCHEMA, stop=stop, reason=reason, step=stands.newest_step, best_step=best_step)
