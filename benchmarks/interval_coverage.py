"""How often the 95% intervals of the evaluation hold the truth, in simulation.

    python -m benchmarks.interval_coverage [--trials 10000] [--out FILE]

Every interval that a report shows is asked of data whose truth is known, at 20 to 2,000 items. Required of each: 95%
+- 1 on average over truths (scenario `any`: a new truth is drawn for each trial, as is usual for intervals of discrete
data: Agresti and Coull 1998; Newcombe 1998). The other scenarios are single truths, the hard ones among them: few items
that differ, scores near 1, few clusters. The percentile bootstrap and Student's interval stand beside, to show why they
do not decide. Exit status 1 when a required one is missed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from distributed_ft.evaluation.forgetting import Suite, forgetting
from distributed_ft.evaluation.significance import t_quantile
from distributed_ft.evaluation.stats import Pairs, bootstrap, interval, mean, paired_interval, stratified_interval

SIZES = (20, 50, 100, 200, 500, 1000, 2000)
NOMINAL, TOLERANCE = 0.95, 0.01
CLUSTER = 5  # items in one
SHARED = 0.3  # correlation of two items of one cluster
Random = np.random.Generator
Trial = tuple[float, tuple[float, float]]  # the truth, and the interval


@dataclass(frozen=True)
class Case:
    """One interval on one kind of data; `required`: 95% +- 1 of it."""

    interval: str
    scenario: str
    trial: Callable[[Random, int], Trial]
    required: bool = False
    sizes: tuple[int, ...] = SIZES


# --- data ----------------------------------------------------------------------------------------------------------

CREDIT = np.array([0, 0.25, 0.5, 0.75, 1])
CHANGE = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
SCORES = {"half right": [0.3, 0.1, 0.2, 0.2, 0.2], "most right": [0, 0.05, 0.05, 0.1, 0.8]}
SCORES |= {"all but 5% right": [0, 0.01, 0.015, 0.025, 0.95]}
CHANGES = {
    "many differ": [0.02, 0.05, 0.1, 0.4, 0.2, 0.15, 0.08],
    "15% differ": [0, 0.01, 0.01, 0.85, 0.05, 0.05, 0.03],
}
CHANGES |= {"4% differ": [0, 0, 0, 0.96, 0.02, 0.01, 0.01]}
TABLES = {
    "8% won, 2% lost": [0.85, 0.08, 0.02, 0.05],
    "half won": [0.2, 0.5, 0.05, 0.25],
    "1% each": [0.5, 0.01, 0.01, 0.48],
}


def names(n: int) -> list[str]:
    return [str(i // CLUSTER) for i in range(n)]


def within_clusters(rng: Random, shares: Sequence[float], n: int) -> np.ndarray:
    """Kinds of items of which those in a cluster are alike: each cluster has shares of its own around these."""
    of_cluster = rng.dirichlet(np.maximum(shares, 1e-9) * (1 / SHARED - 1), n // CLUSTER)
    thresholds = np.repeat(of_cluster.cumsum(axis=1), CLUSTER, axis=0)
    kinds: np.ndarray = (rng.random((len(thresholds), 1)) > thresholds).sum(axis=1)
    return kinds.clip(max=len(shares) - 1)


def shares_of(rng: Random, shares: Sequence[float] | None, kinds: int) -> np.ndarray:
    """These, or any."""
    return rng.dirichlet(np.ones(kinds)) if shares is None else np.asarray(shares, dtype=np.float64)


# --- intervals -----------------------------------------------------------------------------------------------------


def right_or_wrong(share: float | None) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        truth = rng.random() if share is None else share
        return truth, interval(mean((rng.random(n) < truth).astype(float)))

    return trial


def partial_credit(shares: Sequence[float] | None) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, len(CREDIT))
        return float(p @ CREDIT), interval(mean(rng.choice(CREDIT, n, p=p)))

    return trial


def clustered_score(share: float | None) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        truth = rng.uniform(0.05, 0.95) if share is None else share
        return truth, interval(mean(within_clusters(rng, [1 - truth, truth], n).astype(float), names(n)))

    return trial


def pairs_of_right(shares: Sequence[float] | None) -> Callable[[Random, int], Trial]:
    """Shares of items kept, won, lost and wrong."""

    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, 4)
        kinds = rng.choice(4, n, p=p)
        before, after = (kinds % 2 == 0) & (kinds < 3), kinds < 2
        return float(p[1] - p[2]), paired_interval([(before.astype(float), after.astype(float))])

    return trial


def pairs_of_credit(shares: Sequence[float] | None) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, len(CHANGE))
        change = rng.choice(CHANGE, n, p=p)
        return float(p @ CHANGE), paired_interval([Pairs(np.maximum(-change, 0), np.maximum(change, 0))])

    return trial


def clustered_pairs(shares: Sequence[float] | None) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, 4)
        kinds = within_clusters(rng, p.tolist(), n)
        before, after = (kinds % 2 == 0) & (kinds < 3), kinds < 2
        return float(p[1] - p[2]), paired_interval([Pairs(before.astype(float), after.astype(float), names(n))])

    return trial


def three_tasks(rng: Random, n: int) -> Trial:
    """One right or wrong, one with partial credit, one in clusters; each of n items."""
    of_right, of_credit, of_clusters = (
        shares_of(rng, None, 4),
        shares_of(rng, None, len(CHANGE)),
        shares_of(rng, None, 4),
    )
    kinds, change = rng.choice(4, n, p=of_right), rng.choice(CHANGE, n, p=of_credit)
    inside = within_clusters(rng, of_clusters.tolist(), n)
    strata = [
        Pairs((kinds % 2 == 0) & (kinds < 3), kinds < 2),
        Pairs(np.maximum(-change, 0), np.maximum(change, 0)),
        Pairs((inside % 2 == 0) & (inside < 3), inside < 2, names(n)),
    ]
    truths = (of_right[1] - of_right[2], of_credit @ CHANGE, of_clusters[1] - of_clusters[2])
    return float(sum(truths) / 3), paired_interval(strata)


def skills(rng: Random, n: int) -> Trial:
    """Backward transfer: the mean over skills of 24 items, as those that are shipped; each has its own shares."""
    return _skills(rng, np.arange(n - n % 24) // 24)


def skills_of_unlike_size(rng: Random, n: int) -> Trial:
    """The mean over two skills, one of a fifth of the items."""
    return _skills(rng, (np.arange(n) >= n // 5).astype(int))


def _skills(rng: Random, of_skill: np.ndarray) -> Trial:
    shares = rng.dirichlet(np.ones(4), of_skill.max() + 1)
    kinds = (rng.random((len(of_skill), 1)) > shares.cumsum(axis=1)[of_skill]).sum(axis=1).clip(max=3)
    before, after = (kinds % 2 == 0) & (kinds < 3), kinds < 2
    truth = float((shares[:, 1] - shares[:, 2]).mean())
    return truth, stratified_interval(Pairs(before, after), of_skill.astype(str).tolist())


def guessed(rng: Random, n: int) -> Trial:
    """Forgetting where one in four guesses is right."""
    knows, forgets, learns = rng.uniform(0.4, 0.9), rng.uniform(0.05, 0.35), 0.05
    place = rng.random(n)
    known_before, known_after = place < knows, (place >= forgets) & (place < knows + learns)
    before, after = (np.where(k, 1.0, rng.random(n) < 0.25).tolist() for k in (known_before, known_after))
    found = forgetting([Suite(before, after, [None] * n, 0.25)])
    return forgets, (found.low, found.high)


def student(shares: Sequence[float] | None, values: np.ndarray) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, len(values))
        found = mean(rng.choice(values, n, p=p), spread=2.0)
        half = t_quantile(0.975, n - 1) * found.stderr
        return float(p @ values), (found.value - half, found.value + half)

    return trial


def percentile(shares: Sequence[float] | None, values: np.ndarray) -> Callable[[Random, int], Trial]:
    def trial(rng: Random, n: int) -> Trial:
        p = shares_of(rng, shares, len(values))
        seed = int(rng.integers(2**32))
        return float(p @ values), bootstrap(rng.choice(values, n, p=p), seed=seed, resamples=1000)

    return trial


WILSON, EFFECTIVE, CLUSTERED = "score: Wilson", "score: Wilson, effective n", "score in clusters: Wilson, effective n"
NEWCOMBE, GAINS, PAIRED_CLUSTERED = "pair: Newcombe", "pair: gains less losses", "pair in clusters: gains less losses"
TASKS, TRANSFER, GUESSED = (
    "pair: mean over 3 tasks",
    "backward transfer: stratified",
    "forgetting, corrected for chance",
)
STUDENT, BOOTSTRAP = "(Student's t)", "(percentile bootstrap)"
MANY = SIZES[2:]  # at least 20 clusters

CASES: tuple[Case, ...] = (
    Case(WILSON, "any", right_or_wrong(None), required=True),
    *(Case(WILSON, f"{p:.0%} right", right_or_wrong(p)) for p in (0.5, 0.8, 0.95)),
    Case(EFFECTIVE, "any", partial_credit(None), required=True),
    *(Case(EFFECTIVE, name, partial_credit(p)) for name, p in SCORES.items()),
    Case(CLUSTERED, "any", clustered_score(None), required=True, sizes=MANY),
    *(Case(CLUSTERED, f"{p:.0%} right", clustered_score(p), sizes=SIZES[1:]) for p in (0.5, 0.8, 0.95)),
    Case(NEWCOMBE, "any", pairs_of_right(None), required=True),
    *(Case(NEWCOMBE, name, pairs_of_right(p)) for name, p in TABLES.items()),
    Case(GAINS, "any", pairs_of_credit(None), required=True),
    *(Case(GAINS, name, pairs_of_credit(p)) for name, p in CHANGES.items()),
    Case(PAIRED_CLUSTERED, "any", clustered_pairs(None), required=True, sizes=MANY),
    *(Case(PAIRED_CLUSTERED, name, clustered_pairs(p), sizes=SIZES[1:]) for name, p in TABLES.items()),
    Case(TASKS, "any", three_tasks, required=True, sizes=MANY),
    Case(TRANSFER, "any, skills of 24", skills, required=True, sizes=MANY),
    Case(TRANSFER, "any, skills of n/5, 4n/5", skills_of_unlike_size, sizes=MANY),
    Case(GUESSED, "any", guessed, required=True, sizes=MANY),
    Case(STUDENT, "score, any", student(None, CREDIT)),
    *(Case(STUDENT, f"score, {name}", student(p, CREDIT)) for name, p in SCORES.items()),
    *(Case(STUDENT, f"pair, {name}", student(p, CHANGE)) for name, p in CHANGES.items()),
    Case(BOOTSTRAP, "score, any", percentile(None, CREDIT)),
    *(Case(BOOTSTRAP, f"score, {name}", percentile(p, CREDIT)) for name, p in SCORES.items()),
    *(Case(BOOTSTRAP, f"pair, {name}", percentile(p, CHANGE)) for name, p in CHANGES.items()),
)


# --- coverage ------------------------------------------------------------------------------------------------------


def coverage(case: Case, n: int, trials: int, seed: int = 0) -> dict[str, Any]:
    """The share of trials in which the interval holds the truth."""
    rng = np.random.default_rng([seed, n, *case.interval.encode(), *case.scenario.encode()])
    held = 0
    for _ in range(trials):
        truth, (low, high) = case.trial(rng, n)
        held += low - 1e-9 <= truth <= high + 1e-9
    return {
        "interval": case.interval,
        "scenario": case.scenario,
        "n": n,
        "coverage": round(held / trials, 4),
        "trials": trials,
        "required": case.required,
    }


def missed(found: dict[str, Any]) -> bool:
    return bool(abs(found["coverage"] - NOMINAL) > TOLERANCE + 1e-9)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10_000, help="of each cell; of the bootstrap a fifth")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "interval_coverage.json")
    given = parser.parse_args(arguments)
    cells = []
    for case in CASES:
        trials = given.trials // 5 if case.interval == BOOTSTRAP else given.trials
        of_case = [coverage(case, n, trials) for n in case.sizes]
        print(line(of_case), flush=True)
        cells += of_case
    failed = [cell for cell in cells if cell["required"] and missed(cell)]
    outside = [cell for cell in cells if not cell["required"] and missed(cell) and not cell["interval"].startswith("(")]
    result = {"cluster": CLUSTER, "correlation_within": SHARED}
    harness.write_result(given.out, {**result, "cells": cells, "missed": failed, "single_truths_outside": outside})
    print(f"required {NOMINAL:.0%} +- {TOLERANCE:.0%}: {len(failed)} missed; of single truths {len(outside)} outside")
    return int(bool(failed))


def line(cells: Sequence[dict[str, Any]]) -> str:
    shown = "".join(f"  {cell['n']:4d}: {cell['coverage']:.3f}{'!' if missed(cell) else ' '}" for cell in cells)
    return f"{cells[0]['interval']:40s}{cells[0]['scenario']:24s}{shown}"


if __name__ == "__main__":
    sys.exit(main())
