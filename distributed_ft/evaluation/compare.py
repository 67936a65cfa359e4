"""Several runs side by side: in what they differ, what they gained and forgot, what they cost, which ones to consider.

Only what is on disk is said: a run that was not evaluated has no score. Runs that were judged by other questions are
not compared with one another: they stand in groups of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distributed_ft.artifacts import RunDirectory, read_json, read_json_lines, step_name
from distributed_ft.config.load import leaves, load_resolved
from distributed_ft.evaluation.report.collect import collect, scores_in
from distributed_ft.evaluation.report.evidence import Difference, Estimate, Evidence, Forgetting
from distributed_ft.evaluation.report.scores import Scores, difference

Unit = Literal["GPU", "process"]
Questions = tuple[tuple[str, str, frozenset[str]], ...]  # task, its metric, its items by content; of every task


@dataclass(frozen=True)
class Cost:
    """Summed over the optimizer steps in metrics.jsonl; hours: of all processes, each step at the number that it had;
    without start-up, validation, saving and steps that were redone. None where a step does not say its number."""

    steps: int
    tokens: int  # supervised
    hours: float | None


@dataclass(frozen=True)
class Entry:
    """One run. settings: of the keys in which the runs differ; unit: what an hour is of."""

    name: str
    path: str
    settings: dict[str, Any]
    cost: Cost
    unit: Unit
    step: int | None  # of the checkpoint that is judged: BEST, or the one that comes nearest to it
    is_best: bool
    task: Estimate | None
    base: Estimate | None
    forgetting: Forgetting | None
    versus_top: Difference | None = None  # this one minus the group's best, on the same items
    judged_on: tuple[str, ...] = ()  # tasks whose rows `task` is of: validation rows where it was asked no others
    pareto: bool = False  # no run of the group scores as high for less, or higher for as much

    @property
    def gain_per_hour(self) -> float | None:
        """Points over the base, in [0, 1], for an hour of one GPU (or process)."""
        if self.task is None or self.base is None or not self.cost.hours:
            return None
        return (self.task.score - self.base.score) / self.cost.hours


@dataclass(frozen=True)
class Comparison:
    """keys: in which the runs differ. groups: of runs that answered the same questions, best first; those that were not
    evaluated are a group of their own, the last."""

    keys: tuple[str, ...]
    groups: tuple[tuple[Entry, ...], ...]

    def label(self, entry: Entry) -> str:
        """What tells a run from the others: its name, or where it lies when another one has the same name."""
        alike = [other for group in self.groups for other in group if other.name == entry.name]
        return entry.name if len(alike) == 1 else entry.path


def compare(paths: Sequence[Path]) -> Comparison:
    """Raises CheckpointError when a run directory cannot be read."""
    configs = [dict(leaves(load_resolved(RunDirectory(path).config).model_dump(mode="json"))) for path in paths]
    keys = differing(configs)
    by_questions: dict[Questions, list[tuple[Entry, Scores]]] = {}
    for path, config in zip(paths, configs, strict=True):
        evidence, scores = collect(path), scores_in(RunDirectory(path))
        entry = _entry(evidence, {key: config.get(key) for key in keys})
        by_questions.setdefault(_questions(scores, entry), []).append((entry, scores))
    groups = [_ranked(group) for questions, group in by_questions.items() if questions]
    unscored = tuple(entry for entry, _ in by_questions.get((), []))
    return Comparison(keys, (*groups, *([unscored] if unscored else [])))


def differing(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The dotted keys that are not the same in all; how a run is called and where it lies is no setting."""
    names = dict.fromkeys(key for config in configs for key in config if key not in ("name", "runs_dir"))
    return tuple(key for key in names if len({json.dumps(config.get(key)) for config in configs}) > 1)


def cost(records: Sequence[Mapping[str, Any]]) -> Cost:
    """Of the lines of metrics.jsonl."""
    steps = {record["step"]: record for record in records if "loss" in record}.values()
    known = all("world_size" in record for record in steps)
    seconds = sum(record["step_seconds"] * record["world_size"] for record in steps) if known else None
    tokens = sum(int(record["tokens"]) for record in steps)
    return Cost(len(steps), tokens, None if seconds is None or not steps else seconds / 3600)


def _entry(evidence: Evidence, settings: dict[str, Any]) -> Entry:
    run, judged = RunDirectory(evidence.path), evidence.judged
    scored = judged is not None and judged.task is not None
    environment = read_json(run.environment) if run.environment.exists() else {}
    return Entry(
        name=evidence.name,
        path=evidence.path,
        settings=settings,
        cost=cost(read_json_lines(run.metrics)),
        unit="GPU" if environment.get("cuda") and "NVIDIA" in str(environment.get("devices")) else "process",
        step=judged.step if judged is not None and scored else None,
        is_best=scored and judged is not None and judged.step == evidence.best_step,
        task=judged.task if judged is not None else None,
        base=evidence.task.base if evidence.task is not None else None,
        forgetting=judged.forgetting if judged is not None and scored else None,
        judged_on=tuple(task.name for task in evidence.tasks),
    )


def _questions(scores: Scores, entry: Entry) -> Questions:
    """What the judged checkpoint was asked; empty when nothing was."""
    if entry.step is None:
        return ()
    asked, model = [], step_name(entry.step)
    for task in sorted([*entry.judged_on, *scores.tasks("general")]):
        result = scores.result(model, task)
        items = frozenset(sample.doc_hash for sample in scores.samples(model, task))
        asked.append((task, result.metric if result else "", items))
    return tuple(asked)


def _ranked(group: Sequence[tuple[Entry, Scores]]) -> tuple[Entry, ...]:
    """By score; each against the best of them, on the same items."""
    ordered = sorted(group, key=lambda pair: (-_score(pair[0]), pair[0].cost.hours or 0.0))
    (top, top_scores), *_ = ordered
    front = pareto_front([(_score(e), e.cost.hours if e.is_best else None) for e, _ in ordered])
    ranked = []
    for place, (entry, scores) in enumerate(ordered):
        paired = None if place == 0 else difference(_paired(top, top_scores, entry, scores))
        ranked.append(Entry(**{**vars(entry), "versus_top": paired, "pareto": place in front}))
    return tuple(ranked)


def _paired(top: Entry, top_scores: Scores, entry: Entry, scores: Scores) -> list[Any]:
    assert top.step is not None
    assert entry.step is not None
    strata = []
    for task in entry.judged_on:
        before = {sample.doc_hash: sample for sample in top_scores.samples(step_name(top.step), task)}
        strata.append([(before[s.doc_hash], s) for s in scores.samples(step_name(entry.step), task)])
    return strata


def _score(entry: Entry) -> float:
    return entry.task.score if entry.task is not None else 0.0


def pareto_front(points: Sequence[tuple[float, float | None]]) -> set[int]:
    """The indices of (score, cost) that no other one beats: at least as good for at most as much, and better in one.
    One without a cost does not take part."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    known = {index: (score, hours) for index, (score, hours) in enumerate(points) if hours is not None}
    return {index for index, mine in known.items() if not any(beats(other, mine) for other in known.values())}


# --- shown ---------------------------------------------------------------------------------------------------------


def as_json(comparison: Comparison) -> dict[str, Any]:
    """For programs: None is what is not known."""
    groups = [[{**asdict(e), "gain_per_hour": e.gain_per_hour} for e in group] for group in comparison.groups]
    return {"schema": 1, "differ": comparison.keys, "groups": groups}


def text(comparison: Comparison) -> str:
    """A table for each group of runs that answered the same questions."""
    groups = comparison.groups
    evaluated = [group for group in groups if group[0].step is not None]
    parts = []
    if len(evaluated) > 1:
        parts.append("These runs were judged by other items or tasks: compare only within a table.")
    parts += [_table(comparison, group) for group in groups]
    shown = [entry for group in evaluated for entry in group]
    if any(not entry.is_best for entry in shown):
        parts.append(
            "† not BEST, but what the report judges: none is inside the forgetting budget, or BEST has learned nothing"
        )
    if any(entry.pareto for entry in shown):
        parts.append(
            "* Pareto front: no other BEST scores as high for less. Hours are of the steps, over all processes."
        )
    return "\n\n".join(parts)


def _table(comparison: Comparison, group: Sequence[Entry]) -> str:
    keys = comparison.keys
    unit = "GPU" if all(entry.unit == "GPU" for entry in group) else "process"
    last = [key.rpartition(".")[2] for key in keys]
    labels = [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]
    head = ["", "run", *labels, "checkpoint", "score", "minus the best", "forgotten", "steps", "tokens"]
    rows = [[*head, f"{unit}-hours", f"gain per {unit}-hour"]]
    for entry in group:
        rows.append(["*" if entry.pareto else "", comparison.label(entry)])
        rows[-1] += [_value(entry.settings[key]) for key in keys]
        rows[-1] += [*_judgement(entry), f"{entry.cost.steps:,}", f"{entry.cost.tokens:,}"]
        rows[-1].append("not recorded" if entry.cost.hours is None else f"{entry.cost.hours:.3g}")
        rows[-1].append("" if entry.gain_per_hour is None else f"{entry.gain_per_hour:.3g}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _judgement(entry: Entry) -> list[str]:
    if entry.task is None or entry.step is None:
        return ["not evaluated", "", "", ""]
    lost, paired = entry.forgetting, entry.versus_top
    return [
        f"step {entry.step}{'' if entry.is_best else ' †'}",
        f"{entry.task.score:.3f} ± {entry.task.stderr:.3f}",
        "" if paired is None else f"{paired.mean:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]",
        "not measured" if lost is None else f"{lost.rate:.3f} [{lost.low:.3f}, {lost.high:.3f}]",
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
