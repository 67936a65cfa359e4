"""How much of an adapter to ship: the frontier between what it gains and what it forgets, by its strength. Pure.

See `distributed_ft.model.strength`. At strength 0 it is the base, at 1 the checkpoint as it was trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distributed_ft.evaluation.forgetting import Forgetting
from distributed_ft.evaluation.select import TIE, Candidate, inside
from distributed_ft.evaluation.stats import Clusters, Pairs, interval, interval_of, mean, paired_interval
from distributed_ft.records import TaskResult

_SLACK = 1e-12  # no choice is a matter of rounding


@dataclass(frozen=True)
class Scaled:
    """A checkpoint's scores at one strength; `tasks` and `clusters` as in `Candidate`."""

    strength: float
    tasks: Mapping[str, Sequence[float]]
    forgotten: Forgetting | None  # None without a general suite, and for the base
    clusters: Mapping[str, Clusters] = field(default_factory=dict)

    @property
    def candidate(self) -> Candidate:
        """To be judged by the rules of checkpoints."""
        return Candidate(0, self.tasks, self.forgotten.mean_drop if self.forgotten else None)


@dataclass(frozen=True)
class Point:
    """One strength: mean score over the tasks, and mean drop on the general suite, with 95% intervals."""

    strength: float
    accuracy: float
    low: float
    high: float
    mean_drop: float | None
    drop_low: float | None
    drop_high: float | None
    inside_budget: bool


@dataclass(frozen=True)
class OnTest:
    """The recommended strength's score on the test rows of a task, with its 95% interval."""

    task: str
    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Frontier:
    """`recommended` is None when no strength is inside the budget. `points` by strength, the base first.

    on_test: where the points are of validation rows, and less than the full strength is recommended.
    """

    step: int
    recommended: float | None
    reason: str
    points: tuple[Point, ...]
    on_test: tuple[OnTest, ...] = ()


def frontier(step: int, base: Scaled, scaled: Sequence[Scaled], budget: float) -> Frontier:
    """What each strength gains and costs, and which to ship.

    Args:
        base: its drop is 0 where there is a general suite.
        scaled: of one checkpoint, 1.0 among them, on the same items as `base`.
        budget: largest mean drop on the general suite.
    """
    ordered = sorted(scaled, key=lambda s: s.strength)
    has_suite = any(s.forgotten for s in ordered)
    points = [_point(base, budget, drop=0.0 if has_suite else None), *(_point(s, budget) for s in ordered)]
    recommended, reason = recommend(ordered, budget, base.candidate.accuracy)
    return Frontier(step, recommended, reason, tuple(points))


def on_test(results: Sequence[TaskResult]) -> tuple[OnTest, ...]:
    """Of the results of a scaled adapter on the test rows of tasks."""
    return tuple(OnTest(r.task, r.score, *interval_of(r), r.n) for r in results)


def recommend(scaled: Sequence[Scaled], budget: float, base: float) -> tuple[float | None, str]:
    """The most accurate strength inside the budget; of those as good within noise (as in `select`) the one that
    forgets least, and of these the nearest to what was trained. None that is no better than the base's accuracy."""
    fitting = [s for s in scaled if inside(s.candidate, budget)]
    kept = [s for s in fitting if s.candidate.accuracy > base + _SLACK]
    if not fitting:
        least = min(scaled, key=_drop)
        return None, (
            f"the smallest mean drop is {_drop(least):.3f}, at {least.strength:g}, over the forgetting budget of "
            f"{budget:g}"
        )
    if not kept:
        most = max(s.strength for s in fitting)
        return None, f"up to {most:g}, the forgetting budget of {budget:g} is kept, but the base is as accurate"
    top = max(kept, key=lambda s: (s.candidate.accuracy, s.strength))
    equal = [s for s in kept if s is top or _as_good(s, top)]
    chosen = min(equal, key=lambda s: (round(_drop(s), 9), -s.strength))
    accuracy, budget_text = chosen.candidate.accuracy, f"inside the forgetting budget of {budget:g}"
    if chosen is top:
        return chosen.strength, f"highest task accuracy, {accuracy:.3f}, {budget_text}"
    return chosen.strength, (
        f"task accuracy {accuracy:.3f} is within noise of the highest, {top.candidate.accuracy:.3f} at "
        f"{top.strength:g}, and it forgets less ({_drop(chosen):.3f} against {_drop(top):.3f}); {budget_text}"
    )


def _as_good(one: Scaled, top: Scaled) -> bool:
    low, _ = paired_interval([Pairs(s, top.tasks[name], top.clusters.get(name)) for name, s in one.tasks.items()])
    return low <= 0 and top.candidate.accuracy - one.candidate.accuracy <= TIE + _SLACK


def _drop(scaled: Scaled) -> float:
    return scaled.forgotten.mean_drop if scaled.forgotten else 0.0


def _point(scaled: Scaled, budget: float, drop: float | None = None) -> Point:
    low, high = _interval(scaled)
    lost = scaled.forgotten
    return Point(
        strength=scaled.strength,
        accuracy=scaled.candidate.accuracy,
        low=low,
        high=high,
        mean_drop=lost.mean_drop if lost else drop,
        drop_low=lost.drop_low if lost else drop,
        drop_high=lost.drop_high if lost else drop,
        inside_budget=inside(scaled.candidate, budget),
    )


def _interval(scaled: Scaled) -> tuple[float, float]:
    """95%, of the mean over tasks, from that of each (`stats.interval`); distances to the bounds are squared and added,
    as in `stats.paired_interval`."""
    below = above = total = 0.0
    for name, items in scaled.tasks.items():
        found = mean(items, scaled.clusters.get(name))
        low, high = interval(found)
        below, above, total = below + (found.value - low) ** 2, above + (high - found.value) ** 2, total + found.value
    count = len(scaled.tasks)
    return max(0.0, (total - below**0.5) / count), min(1.0, (total + above**0.5) / count)
