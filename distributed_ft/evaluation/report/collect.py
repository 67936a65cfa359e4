"""Reads a run directory into `Evidence`. What is not there becomes None, and is listed in `missing`; no guesses."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json, read_json_lines, step_name
from distributed_ft.config.schema import AUTO_SHOTS
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation.report.answers import TrainingAnswers, task_answers, training_answers
from distributed_ft.evaluation.report.evidence import (
    CheckpointScores,
    Curves,
    Evidence,
    Files,
    Missing,
    Prompt,
    TaskAnswers,
    Training,
)
from distributed_ft.evaluation.report.samples import side_by_side
from distributed_ft.evaluation.report.scores import BASE, Scores
from distributed_ft.evaluation.strength import Frontier, OnTest, Point
from distributed_ft.evaluation.task import VALIDATION, CutOff
from distributed_ft.evaluation.verdict import inside_budget, judged_step

DEFAULT_BUDGET = 0.05  # as in config/schema.py, for a run directory without config.json


def collect(path: Path) -> Evidence:
    """Everything known about the run in `path`.

    Raises CheckpointError when there is no such directory, or a file in it is damaged; the message names it.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run directory; `dft train run.yaml` makes one")
    run = RunDirectory(path)
    config = _read(run.config)
    allowed = _at(config, "evaluation", "select", "forgetting_budget")
    budget = DEFAULT_BUDGET if allowed is None else float(allowed)
    records = read_json_lines(run.metrics)
    curves = _curves(records)
    summary = _read(run.evaluation / "summary.json")
    scores = scores_in(run)
    tasks, general = scores.tasks("task"), scores.tasks("general")
    by = _chosen_on(config, scores)
    checkpoints = _checkpoints(run, scores, curves, [by[task] for task in tasks], _texts(summary))
    best = _best(run, summary, checkpoints, budget)
    step = judged_step(checkpoints, best, budget)
    model = None if step is None else step_name(step)
    judged_on = tasks if all(scores.result(model, task) for task in tasks) else [by[task] for task in tasks]
    no_prompt = _no_prompt(summary)
    chosen = _at(summary, "selection", "best_step")
    unselected = (
        best is None and any(c.task for c in checkpoints) and ("selection" not in summary or chosen is not None)
    )
    training = training_answers(config)
    seen = [s for s in dict.fromkeys([step, *(c.step for c in reversed(checkpoints) if c.task)][:2]) if s is not None]
    return Evidence(
        name=str(config.get("name", path.resolve().name)),
        path=str(path),
        config=config,
        environment=_read(run.environment),
        data=_read(run.data / "report.json"),
        budget=budget,
        few_shot_examples=_examples(config, summary),
        no_prompt=no_prompt,
        tasks=scores.compare_each(judged_on, model),
        task=scores.compare(judged_on, model),
        general=scores.compare(general, model),
        checkpoints=checkpoints,
        best_step=best,
        selection_reason=_text(_at(summary, "selection", "reason")),
        judged_step=step,
        skills=scores.skills(model),
        samples=side_by_side(scores, model, judged_on),
        curves=curves,
        training=_training(records),
        evaluation_seconds=scores.seconds(),
        cut_off=_cut_off(summary),
        missing=_missing(
            path,
            config,
            checkpoints,
            scores,
            curves,
            unselected=unselected,
            no_prompt=no_prompt,
            untested=best if step == best and judged_on != tasks else None,
        ),
        choosing=scores.compare(list(by.values()), model) if judged_on != list(by.values()) else None,
        how_chosen=_text(_at(summary, "selection", "how_chosen")),
        optimistic=best is not None and any(task == rows for task, rows in by.items()),
        prompts=_prompts(summary),
        ended_early=_text(_at(_read(run.progress), "reason")),
        strength=_strength(summary),
        answers=tuple(_answers(scores, rows, of, training) for of in seen for rows in _asked(scores, by, of)),
        plain_text_rows=training.plain_text / training.rows if training and training.rows else None,
    )


def _asked(scores: Scores, by: dict[str, str], step: int) -> list[str]:
    """The test rows of each task where the checkpoint was asked them, else those that it was chosen by."""
    return [task if scores.result(step_name(step), task) else rows for task, rows in by.items()]


def _answers(scores: Scores, task: str, step: int, training: TrainingAnswers | None) -> TaskAnswers:
    return task_answers(task, step, scores.samples(step_name(step), task), scores.samples(BASE, task), training)


def scores_in(run: RunDirectory) -> Scores:
    """What the last evaluation of a run has scored. Raises CheckpointError for a file that is damaged."""
    return Scores(run, _read(run.evaluation / "summary.json").get("tasks"))


def _chosen_on(config: dict[str, Any], scores: Scores) -> dict[str, str]:
    """For each task: the one whose rows the checkpoints were chosen by, itself or that of its validation rows."""
    entries = _at(config, "evaluation", "tasks")
    named = {entry.get("name") for entry in entries or () if isinstance(entry, dict) and entry.get("validation")}
    rows = {task: task + VALIDATION for task in scores.tasks("task")}
    return {task: by if task in named and scores.result(BASE, by) else task for task, by in rows.items()}


def _prompts(summary: dict[str, Any]) -> tuple[Prompt, ...]:
    by_task = summary.get("few_shot")
    return tuple(
        Prompt(task, entry["used"], tuple((t["k"], t["score"]) for t in entry["tried"]), entry["tried"][0]["n"])
        for task, entry in (by_task.items() if isinstance(by_task, dict) else ())
        if entry.get("tried")
    )


def _checkpoints(
    run: RunDirectory, scores: Scores, curves: Curves, tasks: Sequence[str], texts: set[str]
) -> tuple[CheckpointScores, ...]:
    """Those on disk and those that were evaluated before `checkpoint.keep` removed them, oldest first; their scores on
    `tasks`.

    texts: digests of what the divergence from the base was measured on.
    """
    on_disk = {checkpoint.step: checkpoint for checkpoint in run.all_checkpoints()}
    evaluated = {int(model.removeprefix("step-")) for model in scores.models() if _is_checkpoint(model)}
    validation = dict(zip(curves.validation_steps, curves.validation_loss, strict=True))
    rows = []
    for step in sorted(on_disk.keys() | evaluated):
        model = step_name(step)
        task = scores.compare(tasks, model)
        general = scores.compare(scores.tasks("general"), model)
        rows.append(
            CheckpointScores(
                step=step,
                files=_files(on_disk.get(step)),
                task=task.tuned if task else None,
                versus_base=task.versus_base if task else None,
                versus_few_shot=task.versus_few_shot if task else None,
                general=general.tuned if general else None,
                forgetting=scores.forgotten(model),
                validation_loss=validation.get(step),
                drift=scores.drift(model, texts),
            )
        )
    return tuple(rows)


def _texts(summary: dict[str, Any]) -> set[str]:
    by_step = summary.get("kl_to_base")
    return {str(_at(entry, "text_digest")) for entry in by_step.values()} if isinstance(by_step, dict) else set()


def _is_checkpoint(model: str) -> bool:
    """And neither the base nor a checkpoint at another strength (`step-00000500@0.50`)."""
    return model.startswith("step-") and "@" not in model


def _strength(summary: dict[str, Any]) -> Frontier | None:
    found = summary.get("strength")
    if not isinstance(found, dict):
        return None
    try:
        points = tuple(Point(**point) for point in found["points"])
        on_test = tuple(OnTest(**row) for row in found.get("on_test", ()))
        return Frontier(int(found["step"]), found["recommended"], str(found["reason"]), points, on_test)
    except (KeyError, TypeError, ValueError):
        return None


def _files(checkpoint: Checkpoint | None) -> Files:
    """By manifest and sizes; hashing gigabytes is for those who load them."""
    if checkpoint is None:
        return "removed"
    try:
        files = checkpoint.manifest().files
    except CheckpointError:
        return "damaged"
    paths = {checkpoint.path / name: entry.size for name, entry in files.items()}
    return "complete" if all(p.is_file() and p.stat().st_size == size for p, size in paths.items()) else "damaged"


def _best(
    run: RunDirectory, summary: dict[str, Any], checkpoints: Sequence[CheckpointScores], budget: float
) -> int | None:
    """The step that the selection chose, or else that BEST names, if it is whole, scored and inside the budget."""
    if isinstance(summary.get("selection"), dict):
        chosen = summary["selection"].get("best_step")
    else:
        name = run.best_file.read_text().strip() if run.best_file.exists() else ""
        chosen = next((row.step for row in checkpoints if step_name(row.step) == name), None)
    for row in checkpoints:
        if row.step == chosen and row.task is not None and row.files == "complete" and inside_budget(row, budget):
            return row.step
    return None


def _examples(config: dict[str, Any], summary: dict[str, Any]) -> int | None:
    """As many as the prompts held (fewer than asked for where they would not fit), else as asked for."""
    by_task = summary.get("few_shot")
    used = {_at(entry, "used") for entry in by_task.values()} if isinstance(by_task, dict) else set()
    asked = used.pop() if len(used) == 1 else _at(config, "evaluation", "few_shot")
    if asked == "auto" or isinstance(asked, list):  # by task, or not chosen yet
        asked = None if used else max(asked if isinstance(asked, list) else AUTO_SHOTS)
    return asked if isinstance(asked, int) else None


def _no_prompt(summary: dict[str, Any]) -> str | None:
    by_task = summary.get("few_shot")
    entries = by_task.values() if isinstance(by_task, dict) else ()
    return next((_text(_at(entry, "reason")) for entry in entries if _at(entry, "used") == 0), None)


def _cut_off(summary: dict[str, Any]) -> dict[str, CutOff]:
    return {task: CutOff(**counts) for task, counts in (summary.get("cut_off") or {}).items()}


def _curves(records: Sequence[dict[str, Any]]) -> Curves:
    loss: dict[int, float] = {}
    validation: dict[int, float] = {}
    skipped: list[int] = []
    for record in records:
        step, value, held_out = record.get("step"), _number(record.get("loss")), _number(record.get("val_loss"))
        if not isinstance(step, int):
            continue
        if held_out is not None:
            validation[step] = held_out
        if value is not None and not record.get("skipped"):
            loss[step] = value
        elif "loss" in record:
            skipped.append(step)
    values = [loss[step] for step in sorted(loss)]
    window = max(1, min(101, len(values) // 20 | 1))
    return Curves(
        steps=tuple(sorted(loss)),
        loss=tuple(values),
        smoothed=tuple(moving_average(values, window)),
        window=window,
        validation_steps=tuple(sorted(validation)),
        validation_loss=tuple(validation[step] for step in sorted(validation)),
        skipped=tuple(sorted(set(skipped))),
    )


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over an odd `window`, over what there is of it at the ends."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _training(records: Sequence[dict[str, Any]]) -> Training:
    steps = {r["step"]: r for r in records if isinstance(r.get("step"), int) and "loss" in r}
    if not steps:
        return Training()
    tokens = [_number(record.get("tokens")) for record in steps.values()]
    seconds = [_number(record.get("step_seconds")) for record in steps.values()]
    return Training(
        steps=max(steps),
        epochs=_number(steps[max(steps)].get("epoch")),
        tokens=int(sum(t for t in tokens if t is not None)) or None,
        seconds=sum(s for s in seconds if s is not None) or None,
    )


def _missing(
    path: Path,
    config: dict[str, Any],
    checkpoints: Sequence[CheckpointScores],
    scores: Scores,
    curves: Curves,
    *,
    unselected: bool,
    no_prompt: str | None,
    untested: int | None,
) -> tuple[Missing, ...]:
    """In the order in which a user would go about it."""
    run = shlex.quote(str(path))
    train, evaluate = f"dft train {run}", f"dft eval {run}"
    evaluation = config.get("evaluation", {})
    models, tasks = scores.models(), scores.tasks("task")
    unscored = [c.step for c in checkpoints if c.files == "complete" and step_name(c.step) not in models]
    absent = []
    if not config:
        absent.append(Missing("The settings (config.json)", train))
    if not curves.steps:
        absent.append(Missing("The training curve (metrics.jsonl)", train))
    elif not curves.validation_steps:
        absent.append(Missing("The validation loss", "data.validation: 0.1 in run.yaml, in the next run"))
    if not checkpoints:
        absent.append(Missing("Checkpoints", train))
    if config and not evaluation.get("tasks"):
        absent.append(
            Missing("A held-out task to score", f"{evaluate} 'evaluation.tasks=[{{name: NAME, path: FILE}}]'")
        )
    elif not tasks or "base" not in models:
        absent.append(Missing("Scores on the task" if not tasks else "The base model's scores", evaluate))
    elif unscored:
        absent.append(Missing(f"Scores of step {', '.join(str(s) for s in unscored)}", evaluate))
    if not unscored and unselected:
        absent.append(Missing("The selected checkpoint (evaluation/summary.json)", evaluate))
    if untested is not None:
        absent.append(
            Missing(f"The score of step {untested} on the test rows: these are its validation rows", evaluate)
        )
    if config and not evaluation.get("general"):
        absent.append(Missing("What it forgot", f"{evaluate} 'evaluation.general=[shipped]'"))
    elif tasks and not scores.tasks("general"):
        absent.append(Missing("Scores on the general suite", evaluate))
    if config and evaluation.get("few_shot") == 0:
        absent.append(Missing("A few-shot prompt to compare with", f"{evaluate} evaluation.few_shot=4"))
    elif tasks and "few-shot" not in models:
        absent.append(Missing("The few-shot prompt's scores", no_prompt or evaluate))
    return tuple(absent)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} when there is no such file."""
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object expected, {type(value).__name__} found")
    return value


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    """A finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
