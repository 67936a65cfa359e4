"""What the scores say together: paired differences, forgetting, the selected checkpoint; as data and as a table."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from distributed_ft.artifacts import step_name
from distributed_ft.evaluation.clusters import clusters_of
from distributed_ft.evaluation.few_shot import FewShot
from distributed_ft.evaluation.forgetting import Forgetting, Suite, forgetting
from distributed_ft.evaluation.scoring import Model, Scored
from distributed_ft.evaluation.select import Candidate, Selection, inside, select
from distributed_ft.evaluation.significance import holm
from distributed_ft.evaluation.stats import Clusters, Difference, Mean, Pairs, bootstrap, difference, mean, mean_of
from distributed_ft.evaluation.strength import Frontier
from distributed_ft.evaluation.task import VALIDATION, CutOff
from distributed_ft.records import SCHEMA, Drift

BASE, FEW_SHOT = "base", "few-shot"


@dataclass(frozen=True)
class Scores:
    """Every score of a run: `of[model name][task name]`; `models` in the order of the table, base first."""

    models: tuple[Model, ...]
    of: Mapping[str, Mapping[str, Scored]]

    def by_task(self, model: str) -> dict[str, list[float]]:
        """The items' scores on each task that the model is trained for, on test and on validation rows."""
        return {n: _items(s) for n, s in self.of[model].items() if s.result.kind != "general"}

    @property
    def chosen_on(self) -> dict[str, str]:
        """For each task that the base was asked: on the rows of which one choices are made, itself or its validation
        rows'."""
        kinds = {name: scored.result.kind for name, scored in self.of[BASE].items()}
        rows = {task: task + VALIDATION for task, kind in kinds.items() if kind == "task"}
        return {task: by if kinds.get(by) == "validation" else task for task, by in rows.items()}

    def to_choose_by(self, model: str) -> dict[str, list[float]]:
        """The items' scores that a model is chosen by."""
        found = self.by_task(model)
        return {name: found[name] for name in self.chosen_on.values() if name in found}

    def judged_on_test(self) -> list[str]:
        """The checkpoints that were asked the test rows of a task with validation rows, in the order of steps."""
        kept = [task for task, by in self.chosen_on.items() if by != task]
        return [model.name for model in self.checkpoints if any(task in self.of[model.name] for task in kept)]

    def clusters(self) -> dict[str, Clusters]:
        """Of the items of each task that the run is trained for, on test and on validation rows; the same for every
        model."""
        return {n: clusters_of(s.samples) for n, s in self.of[BASE].items() if s.result.kind != "general"}

    def pairs(self, task: str, before: str, after: str) -> Pairs:
        """The scores of two models on the items of a task."""
        first, second = self.of[before][task], self.of[after][task]
        return Pairs(_items(first), _items(second), clusters_of(second.samples))

    def general(self, model: str) -> list[Scored]:
        """The scores of each general suite; [] for few-shot, which is not asked them."""
        return [scored for scored in self.of[model].values() if scored.result.kind == "general"]

    def general_mean(self, model: str) -> Mean | None:
        """The mean over the suites; None without one."""
        suites = self.general(model)
        return mean_of([_mean(suite) for suite in suites]) if suites else None

    def forgotten(self, model: str) -> Forgetting | None:
        """Against the base; None without a general suite."""
        before = self.general(BASE)
        pairs = list(zip(before, self.general(model), strict=True)) if self.general(model) else []
        suites = [
            Suite(
                _items(b),
                _items(a),
                [_group(b, sample.group, len(before)) for sample in b.samples],
                b.result.chance,
                clusters_of(b.samples),
            )
            for b, a in pairs
        ]
        return forgetting(suites) if suites else None

    def with_model(self, model: Model, scored: Mapping[str, Scored]) -> "Scores":
        """These and another model's, in the order of steps."""
        models = sorted([*self.models, model], key=lambda m: m.step)  # stable: base stays before few-shot
        return Scores(tuple(models), {**self.of, model.name: scored})

    def with_more(self, model: Model, scored: Mapping[str, Scored]) -> "Scores":
        """And further scores of a model that is among them."""
        return Scores(self.models, {**self.of, model.name: {**self.of[model.name], **scored}})

    def of_models(self, keep: Callable[[Model], bool]) -> "Scores":
        """Of some of the models."""
        return Scores(tuple(model for model in self.models if keep(model)), self.of)

    @property
    def checkpoints(self) -> list[Model]:
        return [model for model in self.models if model.step > 0]


@dataclass(frozen=True)
class Compared:
    """Two models on one task; `p_holm`: p, adjusted for all the `tasks` that the two are compared on."""

    difference: Difference
    p_holm: float
    tasks: int


@dataclass(frozen=True)
class Summary:
    """Conclusions from `Scores`."""

    scores: Scores
    few_shot: Mapping[str, FewShot]  # by task
    forgotten: Mapping[int, Forgetting]  # by step; empty without a general suite
    candidates: tuple[Candidate, ...]
    selection: Selection
    budget: float
    cut_off: Mapping[str, CutOff]  # by task
    drift: Mapping[int, Drift] = field(default_factory=dict)  # by step; empty without evaluation.generic_text
    everyone: tuple[Candidate, ...] = ()  # the candidates, and those that are gone
    strength: Frontier | None = None  # of the selected checkpoint's adapter, where it was asked for

    @property
    def chosen(self) -> Candidate | None:
        """BEST, or the highest scoring checkpoint where none may be; None where none was scored on a task."""
        scored = [c for c in self.candidates if c.tasks]
        best = [c for c in scored if c.step == self.selection.step]
        return max(best or scored, key=lambda c: (c.accuracy, -c.step), default=None)


def summarise(
    scores: Scores,
    few_shot: Mapping[str, FewShot],
    budget: float,
    cut_off: Mapping[str, CutOff],
    removed: Collection[str] = (),
) -> Summary:
    """Pure.

    Args:
        budget: largest mean drop on the general suite that the selected checkpoint may have.
        removed: names of checkpoints in `scores` that are gone: they cannot be selected; that one of them would have
            been is said in the reason.
    """
    everyone = _candidates(scores)
    gone = {model.step for model in scores.checkpoints if model.name in removed}
    candidates = tuple(c for c in everyone if c.step not in gone)
    selection = select(candidates, budget)
    missed = select(everyone, budget) if gone else selection
    if missed.step in gone:
        reason = f"{selection.reason}; step {missed.step} would be it ({missed.reason}), but checkpoint.keep removed it"
        selection = Selection(selection.step, reason)
    there = scores.of_models(lambda model: model.name not in removed)
    lost = {m.step: there.forgotten(m.name) for m in there.checkpoints}
    forgotten = {step: of_step for step, of_step in lost.items() if of_step is not None}
    return Summary(there, few_shot, forgotten, candidates, selection, budget, cut_off, everyone=everyone)


def _candidates(scores: Scores) -> tuple[Candidate, ...]:
    lost = {model.name: scores.forgotten(model.name) for model in scores.checkpoints}
    clusters = scores.clusters()
    drops = {name: of_model.mean_drop for name, of_model in lost.items() if of_model is not None}
    return tuple(
        Candidate(m.step, scores.to_choose_by(m.name), drops.get(m.name), clusters) for m in scores.checkpoints
    )


def how_chosen(summary: Summary) -> str | None:
    """What the way of choosing means for the score of the chosen checkpoint; None where there was no choice."""
    scores, count = summary.scores, sum(bool(c.tasks) for c in summary.candidates)
    on = scores.chosen_on
    same = [task for task, by in on.items() if by == task]
    apart = [task for task in on if task not in same]
    told = []
    asked = [str(model.step) for model in scores.checkpoints if model.name in scores.judged_on_test()]
    if apart and asked:
        only = f"step {asked[0]} only" if len(asked) == 1 else f"steps {', '.join(asked)}, which were chosen in turn"
        base = "base, few-shot" if FEW_SHOT in scores.of else "base"
        told.append(f"chosen on validation rows; the test rows of {', '.join(apart)} were asked of {base} and {only}")
    if same and count > 1 and summary.selection.step is not None:
        told.append(
            f"the best of {count} checkpoints was chosen on the same rows of {', '.join(same)} that it is judged by, "
            "so its score there is optimistic; validation rows (evaluation.tasks[].validation) keep the two apart"
        )
    return "; ".join(told) or None


def tried(summary: Summary) -> list[str]:
    """For each task, which numbers of examples were tried, and what they scored."""
    return [
        f"{task}: {len(f.examples)} examples in the few-shot prompt, chosen on {f.tried[0].n} validation rows among "
        + ", ".join(f"{each.k} ({each.score:.3f} ± {each.stderr:.3f})" for each in f.tried)
        for task, f in summary.few_shot.items()
        if f.tried
    ]


def as_json(summary: Summary) -> dict[str, Any]:
    """`evaluation/summary.json`."""
    tasks = any(c.tasks for c in summary.candidates)
    return {
        "schema": SCHEMA,
        "tasks": {name: scored.result.kind for name, scored in summary.scores.of[BASE].items()},
        "selection": {
            "best_step": summary.selection.step,
            "reason": summary.selection.reason,
            "forgetting_budget": summary.budget,
            "chosen_on": summary.scores.chosen_on,
            "judged_on_test": summary.scores.judged_on_test(),
            "how_chosen": how_chosen(summary),
            "candidates": [
                {
                    "step": c.step,
                    "task_accuracy": c.accuracy if tasks else None,
                    "mean_drop": c.mean_drop,
                    "inside_budget": inside(c, summary.budget),
                }
                for c in summary.candidates
            ],
        },
        "forgetting": {str(step): asdict(lost) for step, lost in summary.forgotten.items()},
        "kl_to_base": {str(step): _of_drift(drift) for step, drift in summary.drift.items()},
        "few_shot": {
            task: {
                "requested": f.requested,
                "used": len(f.examples),
                "ids": [e.id for e in f.examples],
                "reason": f.reason,
                "tried": [asdict(each) for each in f.tried],
            }
            for task, f in summary.few_shot.items()
        },
        "strength": asdict(summary.strength) if summary.strength else None,
        "cut_off": {task: asdict(cut_off) for task, cut_off in summary.cut_off.items()},
        "paired": {m.name: _paired(summary.scores, m.name) for m in summary.scores.models if m.name != BASE},
    }


def _of_drift(drift: Drift) -> dict[str, Any]:
    return drift.model_dump(include={"kl", "stderr", "low", "high", "tokens", "texts", "text_digest"})


def compared(scores: Scores, model: str, rival: str) -> dict[str, Compared]:
    """The model minus its rival, by task, on the same items; {} for a rival that was not asked. Each p is adjusted for
    the rows that the model is judged on, as in the report: of each task the test rows where it was asked them, else
    those that it is chosen by. Validation rows of tasks that are judged on test rows are a family of their own."""
    asked = [task for task in scores.by_task(model) if task in scores.of.get(rival, {})]
    aside = [by for task, by in scores.chosen_on.items() if by != task and task in asked]
    found: dict[str, Compared] = {}
    for family in ([task for task in asked if task not in aside], [task for task in asked if task in aside]):
        differences = [difference([scores.pairs(task, rival, model)]) for task in family]
        adjusted = holm([of_task.p for of_task in differences])
        found |= {task: Compared(d, p, len(family)) for task, d, p in zip(family, differences, adjusted, strict=True)}
    return found


def _paired(scores: Scores, model: str) -> dict[str, dict[str, Any]]:
    """By task: this model minus base, and minus few-shot, on the same items."""
    found: dict[str, dict[str, Any]] = {task: {} for task in scores.by_task(model)}
    for rival in (BASE, FEW_SHOT):
        for task, of_task in compared(scores, model, rival).items() if rival != model else ():
            pairs = scores.pairs(task, rival, model)
            low, high = bootstrap(np.subtract(pairs.after, pairs.before), pairs.clusters)
            drawn = {"bootstrap_low": low, "bootstrap_high": high}
            entry = {**asdict(of_task.difference), "p_holm": of_task.p_holm, **drawn}
            found[task][f"vs_{rival.replace('-', '_')}"] = entry
    return found


def table(summary: Summary) -> str:
    """Models by tasks, each score with its standard error; forgetting with its 95% interval; and the differences."""
    return "\n\n".join(part for part in (_table_of_scores(summary), _table_of_differences(summary)) if part)


def _table_of_differences(summary: Summary) -> str:
    """Of the chosen checkpoint: what it gained on each task, and where nothing was shown, what could have been."""
    chosen, scores = summary.chosen, summary.scores
    if chosen is None:
        return ""
    rows = []
    for rival, title in ((BASE, "base"), (FEW_SHOT, "few-shot")):
        for task, of_task in compared(scores, step_name(chosen.step), rival).items():
            gain = of_task.difference
            bounds = f"{_signed(gain.value)} [{_signed(gain.low)}, {_signed(gain.high)}]"
            p = f"p {_p(of_task.p_holm)}" + (f" (Holm, {of_task.tasks} tasks)" if of_task.tasks > 1 else "")
            told = _undecided(gain) if gain.low <= 0 <= gain.high or of_task.p_holm >= 0.05 else ""
            rows.append([f"step {chosen.step} minus {title}", task, bounds, p, told])
    return _aligned(rows) if rows else ""


def _undecided(gain: Difference) -> str:
    """What has to be said beside "no difference"."""
    units = f"{gain.n} items" + ("" if gain.units == gain.n else f" in {gain.units} clusters")
    return f"no difference shown; {units} would show {gain.detectable:.3f} or more"


def _p(value: float) -> str:
    return "≤ 0.001" if value < 0.001 else f"{value:.3f}"


def _table_of_scores(summary: Summary) -> str:
    scores = summary.scores
    tasks = list(scores.by_task(BASE))
    metrics = [scores.of[BASE][task].result.metric for task in tasks]
    lost_columns = [("general", "exact_match"), ("forgotten", "of all items, of at most"), ("mean drop", "general")]
    columns = [*zip(tasks, metrics, strict=True), *(lost_columns if scores.general(BASE) else [])]
    columns += [("KL to base", "nats a token")] if summary.drift else []
    rows = [["", *(name for name, _ in columns)], ["", *(unit for _, unit in columns)]]
    for model in scores.models:
        by_task = scores.by_task(model.name)
        row = [_title(summary, model), *(_pm(_mean(scores.of[model.name][t])) if t in by_task else "" for t in tasks)]
        general, lost = scores.general_mean(model.name), summary.forgotten.get(model.step)
        row += [_pm(general) if general else ""] if scores.general(BASE) else []
        if lost and model.step > 0:
            row.append(f"{lost.rate:.3f} [{lost.low:.3f}, {lost.high:.3f}] of {lost.ceiling:.3f}")
            row.append(f"{_signed(lost.mean_drop)} [{_signed(lost.drop_low)}, {_signed(lost.drop_high)}]")
        drift = summary.drift.get(model.step)
        if drift and model.step > 0:
            row.append(f"{drift.kl:.3f} [{drift.low:.3f}, {drift.high:.3f}]")
        rows.append(row)
    return _aligned(rows)


def strength_table(frontier: Frontier) -> str:
    """Strengths of an adapter, what each scores and what it loses."""
    rows = [[f"step {frontier.step} at", "task accuracy", "mean drop", ""]]
    for point in frontier.points:
        lost = "" if point.mean_drop is None else _signed(point.mean_drop)
        if point.mean_drop is not None and point.strength:
            lost += f" [{_signed(point.drop_low or 0.0)}, {_signed(point.drop_high or 0.0)}]"
        note = "base" if not point.strength else "" if point.inside_budget else "over budget"
        if point.strength == frontier.recommended:
            note = "recommended"
        rows.append([f"{point.strength:g}", f"{point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]", lost, note])
    return _aligned(rows)


def _title(summary: Summary, model: Model) -> str:
    if model.name == FEW_SHOT:
        used = sorted({len(f.examples) for f in summary.few_shot.values()})
        return f"base + {'/'.join(map(str, used))} examples"
    if model.step == 0:
        return "base"
    return f"step {model.step}" + (" BEST" if summary.selection.step == model.step else "")


def _pm(value: Mean) -> str:
    return f"{value.value:.3f} ± {value.stderr:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    columns = max(map(len, rows))
    filled = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in filled) for i in range(columns)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in filled]
    return "\n".join(lines)


def _group(suite: Scored, group: str | None, suites: int) -> str:
    """A skill's name; with several suites, which one it is of."""
    name = suite.result.task
    return name if group is None else group if suites == 1 else f"{name}: {group}"


def _mean(scored: Scored) -> Mean:
    return mean(_items(scored), clusters_of(scored.samples))


def _items(scored: Scored) -> list[float]:
    return [sample.score for sample in scored.samples]


def _signed(value: float) -> str:
    """Three decimals with a sign; what rounds to zero has a plus."""
    return f"{round(value, 3) + 0.0:+.3f}"
