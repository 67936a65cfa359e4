"""The scores and samples of a run directory, as estimates with intervals and as paired differences."""

import math
from collections import defaultdict
from collections.abc import Sequence

from pydantic import ValidationError

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation import forgetting, stats
from distributed_ft.evaluation.report.evidence import Difference, Estimate, Forgetting, Skill, TaskComparison
from distributed_ft.evaluation.task import Kind
from distributed_ft.records import Sample, TaskResult

BASE, FEW_SHOT = "base", "few-shot"
RIGHT = 1.0  # an item is right at full score, as in forgetting.py


def _of_one_question(results: dict[tuple[str, str], TaskResult]) -> dict[tuple[str, str], TaskResult]:
    """Without the scores of checkpoints that answered another version of a task than the base did. (The few-shot
    prompt is part of its question, so its digest always differs.)"""
    asked = {task: result.task_digest for (model, task), result in results.items() if model == BASE}
    return {
        (model, task): result
        for (model, task), result in results.items()
        if model in (BASE, FEW_SHOT) or asked.get(task, result.task_digest) == result.task_digest
    }


def _of_these_checkpoints(
    run: RunDirectory, results: dict[tuple[str, str], TaskResult]
) -> dict[tuple[str, str], TaskResult]:
    """Without the scores of checkpoints that were trained anew since. What is removed or damaged keeps its scores."""
    there = {checkpoint.name: checkpoint for checkpoint in run.all_checkpoints()}

    def stale(result: TaskResult) -> bool:
        checkpoint, base = there.get(result.model), results.get((BASE, result.task))
        if checkpoint is None or base is None:
            return False
        try:
            return checkpoint.answers_digest(base.model_digest) != result.model_digest
        except CheckpointError:
            return False

    return {key: result for key, result in results.items() if not stale(result)}


class Scores:
    """The results and samples on disk, read once."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        try:
            results = _of_one_question({(r.model, r.task): r for r in run.task_results()})
            self._results = _of_these_checkpoints(run, results)
        except (ValidationError, TypeError) as error:
            raise CheckpointError(f"{run.evaluation}: a result.json that is none ({error}); evaluate again") from None
        self._samples: dict[tuple[str, str], list[Sample]] = {}

    def tasks(self, kind: Kind) -> list[str]:
        return list(dict.fromkeys(r.task for r in self._results.values() if r.kind == kind))

    def seconds(self) -> float:
        """What all the evaluations took."""
        return sum(result.seconds for result in self._results.values())

    def models(self) -> set[str]:
        return {model for model, _ in self._results}

    def result(self, model: str | None, task: str) -> TaskResult | None:
        return self._results.get((model, task)) if model else None

    def samples(self, model: str | None, task: str) -> list[Sample]:
        if model is None or (model, task) not in self._results:
            return []
        if (model, task) not in self._samples:
            try:
                self._samples[model, task] = self._run.samples(model, task)
            except (ValidationError, TypeError) as error:
                where = self._run.results(model, task) / "samples.jsonl"
                raise CheckpointError(f"{where}: a line that is no sample ({error}); evaluate again") from None
        return self._samples[model, task]

    def compare(self, tasks: Sequence[str], model: str | None) -> TaskComparison | None:
        """`model` (a checkpoint's directory name) beside base and few-shot: on one task, or on average over several."""
        if not tasks:
            return None
        three = [[self.result(name, task) for task in tasks] for name in (BASE, FEW_SHOT, model)]
        known = [result for results in three for result in results if result is not None]
        further = list(dict.fromkeys(name for result in known for name in result.scores)) if len(tasks) == 1 else []
        base, few_shot, tuned = (mean_estimate([estimate(result) for result in results]) for results in three)
        return TaskComparison(
            name=tasks[0] if len(tasks) == 1 else f"the mean of {', '.join(tasks)}",
            metric=", ".join(dict.fromkeys(result.metric for result in known)).replace("_", " "),
            base=base,
            few_shot=few_shot,
            tuned=tuned,
            versus_base=difference([self.paired(BASE, task, model) for task in tasks]),
            versus_few_shot=difference([self.paired(FEW_SHOT, task, model) for task in tasks]),
            further={name: tuple(r[0].scores.get(name) if r[0] else None for r in three) for name in further},
        )

    def paired(self, before: str, task: str, after: str | None) -> list[tuple[Sample, Sample]]:
        """The items that both models answered, matched by content (`doc_hash`), in the order of `after`."""
        by_hash = {sample.doc_hash: sample for sample in self.samples(before, task)}
        return [(by_hash[s.doc_hash], s) for s in self.samples(after, task) if s.doc_hash in by_hash]

    def forgotten(self, model: str) -> Forgetting | None:
        """Against base, over the items of the general suites that both answered; None if there are none."""
        suites = []
        for task in self.tasks("general"):
            both = self.paired(BASE, task, model)
            result = self.result(BASE, task)
            if both and result is not None:
                before, after = [b.score for b, _ in both], [a.score for _, a in both]
                suites.append(forgetting.Suite(before, after, [None] * len(both), result.chance))
        if not suites:
            return None
        lost = forgetting.forgetting(suites)
        return Forgetting(
            rate=lost.rate,
            low=lost.low,
            high=lost.high,
            of_known=lost.of_known if lost.known else None,
            mean_drop=lost.mean_drop,
            drop_low=lost.drop_low,
            drop_high=lost.drop_high,
            n=lost.n,
            known=lost.known,
            before=lost.before,
        )

    def skills(self, model: str | None) -> tuple[Skill, ...]:
        """Base against `model` by group of the general suites, over the items both answered; most lost first."""
        before: dict[str, list[float]] = defaultdict(list)
        after: dict[str, list[float]] = defaultdict(list)
        suites = self.tasks("general")
        for task in suites:
            for old, new in self.paired(BASE, task, model):
                name = old.group or task
                name = name if len(suites) == 1 or name == task else f"{task}: {name}"
                before[name].append(old.score)
                after[name].append(new.score)
        skills = [Skill(n, sum(b) / len(b), sum(after[n]) / len(b), len(b)) for n, b in before.items()]
        return tuple(sorted(skills, key=lambda skill: (-skill.drop, skill.name)))


def estimate(result: TaskResult | None) -> Estimate | None:
    """A score with its 95% interval: see `interval`."""
    if result is None:
        return None
    low, high = interval(result.score, result.stderr, result.n)
    return Estimate(result.score, result.stderr, low, high, result.n)


def interval(score: float, stderr: float, n: int) -> tuple[float, float]:
    """95% interval of a mean of scores in [0, 1].

    Wilson's where the items are right or wrong, since the normal one has no width at 0 and 1; the normal one, cut to
    [0, 1], where partial credit makes the spread smaller than that of right-or-wrong items with the same mean.
    """
    right = round(score * n)
    binary = abs(score * n - right) < 1e-6 and stderr >= 0.95 * math.sqrt(score * (1 - score) / n)
    if binary:
        return stats.wilson(right, n)
    return max(0.0, score - stats.Z95 * stderr), min(1.0, score + stats.Z95 * stderr)


def difference(strata: Sequence[Sequence[tuple[Sample, Sample]]]) -> Difference | None:
    """After minus before, each task counting the same; None if a task has no items in common.

    The smallest detectable difference is 2.8 standard errors (two-sided 5%, power 80%: 1.96 + 0.84; Miller 2024,
    arXiv:2411.00640, section 5), and at least five items: with fewer that differ the interval contains 0.
    """
    if not strata or not all(strata):
        return None
    sides = [([b.score for b, _ in stratum], [a.score for _, a in stratum]) for stratum in strata]
    low, high = stats.paired_interval(sides)
    gain = stats.mean_of([stats.mean([a - b for b, a in zip(before, after, strict=True)]) for before, after in sides])
    return Difference(gain.value, low, high, gain.n, min(1.0, max(2.8 * gain.stderr, 5 / gain.n)))


def mean_estimate(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean over several tasks, each counting the same; None unless every task has a score."""
    known = [e for e in estimates if e is not None]
    if len(known) <= 1 or len(known) < len(estimates):
        return known[0] if len(known) == len(estimates) == 1 else None
    score = sum(e.score for e in known) / len(known)
    stderr = math.sqrt(sum(e.stderr**2 for e in known)) / len(known)
    low = math.sqrt(sum((e.score - e.low) ** 2 for e in known)) / len(known)
    high = math.sqrt(sum((e.high - e.score) ** 2 for e in known)) / len(known)
    return Estimate(score, stderr, max(0.0, score - low), min(1.0, score + high), sum(e.n for e in known))
