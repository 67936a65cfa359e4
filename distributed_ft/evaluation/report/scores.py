"""The scores and samples of a run directory, as estimates with intervals and as paired differences."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from distributed_ft.artifacts import RunDirectory, read_json
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation import forgetting, stats
from distributed_ft.evaluation.clusters import clusters_of
from distributed_ft.evaluation.confusion import confusion
from distributed_ft.evaluation.report.evidence import (
    Difference,
    Divergence,
    Estimate,
    Forgetting,
    Skill,
    TaskComparison,
)
from distributed_ft.evaluation.significance import holm
from distributed_ft.evaluation.task import Kind
from distributed_ft.records import Drift, Sample, TaskResult

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

    def __init__(self, run: RunDirectory, tasks: Mapping[str, str] | None = None) -> None:
        """`tasks`: the kind of each task of the last evaluation: what is there of others is of former settings. None:
        all that is there."""
        self._run = run
        try:
            found = [r for r in run.task_results() if tasks is None or tasks.get(r.task) == r.kind]
            results = _of_one_question({(r.model, r.task): r for r in found})
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
        alone = [of_model[0] for of_model in three] if len(tasks) == 1 else []
        tuned_alone = alone[-1] if alone else None
        base, few_shot, tuned = (mean_estimate([estimate(result) for result in results]) for results in three)
        return TaskComparison(
            name=tasks[0] if len(tasks) == 1 else f"the mean of {', '.join(tasks)}",
            metric=", ".join(dict.fromkeys(result.metric for result in known)).replace("_", " "),
            base=base,
            few_shot=few_shot,
            tuned=tuned,
            versus_base=difference([self.paired(BASE, task, model) for task in tasks]),
            versus_few_shot=difference([self.paired(FEW_SHOT, task, model) for task in tasks]),
            further=_side_by_side([r.scores if r else None for r in alone]),
            totals=_side_by_side([r.totals if r else None for r in alone]),
            empty=tuple(r.empty if r else None for r in alone),
            confusion=confusion(tuned_alone, self.samples(model, tasks[0])) if tuned_alone else None,
        )

    def compare_each(self, tasks: Sequence[str], model: str | None) -> tuple[TaskComparison, ...]:
        """Each task by itself, the p of its differences adjusted for all of them."""
        found = [c for c in (self.compare([task], model) for task in tasks) if c is not None]
        versus_base = adjusted([c.versus_base for c in found])
        versus_few_shot = adjusted([c.versus_few_shot for c in found])
        three = zip(found, versus_base, versus_few_shot, strict=True)
        return tuple(replace(c, versus_base=base, versus_few_shot=few_shot) for c, base, few_shot in three)

    def paired(self, before: str, task: str, after: str | None) -> list[tuple[Sample, Sample]]:
        """The items that both models answered, matched by content (`doc_hash`), in the order of `after`."""
        by_hash = {sample.doc_hash: sample for sample in self.samples(before, task)}
        return [(by_hash[s.doc_hash], s) for s in self.samples(after, task) if s.doc_hash in by_hash]

    def forgotten(self, model: str) -> Forgetting | None:
        """Against base, over the items of the general suites that both answered; None if there are none."""
        lost = self._lost(model)
        if lost is None:
            return None
        found = {name: getattr(lost, name) for name in Forgetting.__dataclass_fields__}
        return Forgetting(**(found if lost.known else {**found, "of_known": None}))

    def drift(self, model: str, texts: Collection[str]) -> Divergence | None:
        """How far it is from the base, if that was measured of this very model, and on one of the `texts` (digests)."""
        path = self._run.drift(model)
        if not path.exists():
            return None
        try:
            found = Drift(**read_json(path))
        except (ValidationError, TypeError) as error:
            raise CheckpointError(f"{path}: not what it should hold ({error}); evaluate again") from None
        known = {result.model_digest for (name, _), result in self._results.items() if name == model}
        if found.model_digest not in known or found.text_digest not in texts:
            return None
        return Divergence(found.kl, found.low, found.high, found.tokens, found.texts)

    def skills(self, model: str | None) -> tuple[Skill, ...]:
        """Base against `model` by group of the general suites, over the items both answered; most lost first."""
        lost = self._lost(model)
        of_skill = lost.by_group.items() if lost is not None else ()
        skills = [
            Skill(name, **{field: getattr(of, field) for field in Skill.__dataclass_fields__ if field != "name"})
            for name, of in of_skill
        ]
        return tuple(sorted(skills, key=lambda skill: (-skill.drop, skill.name)))

    def _lost(self, model: str | None) -> forgetting.Forgetting | None:
        """Items without a skill are one of their suite's name."""
        suites, names = [], self.tasks("general")
        for task in names:
            both, result = self.paired(BASE, task, model), self.result(BASE, task)
            if both and result is not None:
                groups = [b.group or task for b, _ in both]
                groups = [g if len(names) == 1 or g == task else f"{task}: {g}" for g in groups]
                before, after = [b.score for b, _ in both], [a.score for _, a in both]
                clusters = clusters_of([a for _, a in both])
                suites.append(forgetting.Suite(before, after, groups, result.chance, clusters))
        return forgetting.forgetting(suites) if suites else None


def _side_by_side(figures: Sequence[dict[str, float] | None]) -> dict[str, tuple[float | None, ...]]:
    """By name, of each model; None where one has no such figure."""
    names = dict.fromkeys(name for of_model in figures for name in of_model or {})
    return {name: tuple(of_model.get(name) if of_model else None for of_model in figures) for name in names}


def estimate(result: TaskResult | None) -> Estimate | None:
    """A score with its 95% interval: see `stats.interval_of`."""
    if result is None:
        return None
    low, high = stats.interval_of(result)
    return Estimate(result.score, result.stderr, low, high, result.n)


def difference(strata: Sequence[Sequence[tuple[Sample, Sample]]]) -> Difference | None:
    """After minus before, each task counting the same; None if a task has no items in common: see `stats.difference`.
    The smallest detectable difference is that of `stats.detectable`."""
    if not strata or not all(strata):
        return None
    gain = stats.difference([_pairs(stratum) for stratum in strata])
    clusters = None if gain.units == gain.n else gain.units
    return Difference(gain.value, gain.low, gain.high, gain.n, gain.detectable, gain.p, None, clusters)


def adjusted(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Each with its p adjusted for all of them (Holm): of two models on several tasks."""
    known = [(place, d.p) for place, d in enumerate(differences) if d is not None and d.p is not None]
    found = list(differences)
    for (place, _), p in zip(known, holm([p for _, p in known]), strict=True):
        before = found[place]
        assert before is not None
        found[place] = replace(before, p_holm=p)
    return found


def _pairs(both: Sequence[tuple[Sample, Sample]]) -> stats.Pairs:
    return stats.Pairs([b.score for b, _ in both], [a.score for _, a in both], clusters_of([a for _, a in both]))


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
