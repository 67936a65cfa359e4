"""The eval driver: base, base with examples, and every checkpoint, on the same items; then which one to ship.

A process of its own, beside the trainer or after it. It reads checkpoints by their manifests and writes scores, so it
can be killed at any moment and started again: what was scored stays, and a score is used again only for the very model
and question that it was made from. The trainer may remove a checkpoint at any moment (`checkpoint.keep`).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed_ft.artifacts import Checkpoint, RunDirectory, step_name, write_json
from distributed_ft.config.load import load_resolved
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.examples import Example
from distributed_ft.errors import CheckpointError, ConfigError, EvaluationError
from distributed_ft.evaluation.claims import claimed, release
from distributed_ft.evaluation.drift import GenericText
from distributed_ft.evaluation.engines import TransformersEngine, engine_of
from distributed_ft.evaluation.few_shot import FewShot, choose, fitted, rows_to_show
from distributed_ft.evaluation.scalars import log
from distributed_ft.evaluation.scoring import Model, Scored, score, stored, task_digest
from distributed_ft.evaluation.summary import BASE, FEW_SHOT, Scores, Summary, as_json, summarise, table
from distributed_ft.evaluation.task import CutOff, Generate, Task, reference
from distributed_ft.evaluation.tasks import build_tasks
from distributed_ft.records import Drift


def evaluate(run_dir: Path, checkpoints: str = "all") -> None:
    """Score a run, choose BEST, and print the comparison.

    Args:
        run_dir: a run directory.
        checkpoints: `all`, `latest`, or steps such as `500,1000`. Others that were scored before still take part in
            the choice of BEST.

    Raises:
        ConfigError, DataError: a task, its file or the base model cannot be used.
        CheckpointError: no such run or checkpoint, or all checkpoints are damaged.
        EvaluationError: a score cannot be computed. Of a checkpoint: at the end, when the others are scored.
    """
    run = RunDirectory(run_dir)
    config = load_resolved(run.config)
    tasks = build_tasks(config.evaluation)
    wanted = checkpoints_named(run, checkpoints)
    with run.evaluation_lock():
        left = claimed(run) if checkpoints == "all" else []
        evaluation = Evaluation(run, config, tasks)
        scores, failed = _all_scores(run, evaluation, [*_removed(left, wanted), *wanted])
        print_summary(evaluation.conclude(scores))
        for claim in left:
            release(claim)
    if failed:
        raise EvaluationError("\n".join(failed))


def _all_scores(run: RunDirectory, evaluation: "Evaluation", wanted: Sequence[Checkpoint]) -> tuple[Scores, list[str]]:
    """Of base, few-shot, the checkpoints asked for, and others that were scored before; and what failed.

    What a checkpoint gets wrong is its own affair. Without the base's scores there is nothing to compare with.
    """
    scores, failed = evaluation.scores_of_base(), []
    before = _others(run, wanted)
    for checkpoint in [*wanted, *before]:
        try:
            model = evaluation.tuned(checkpoint)
            found = evaluation.stored_scores_of(model) if checkpoint in before else evaluation.scores_of(model)
            scores = scores.with_model(model, found) if found else scores
        except EvaluationError as error:
            failed.append(f"{error}; not scored, the others are")
        except CheckpointError:
            if checkpoint.published:
                raise
            print(f"{checkpoint.name}: removed meanwhile, not scored", file=sys.stderr)
    return scores, failed


def checkpoints_named(run: RunDirectory, names: str) -> list[Checkpoint]:
    """The complete checkpoints that `all`, `latest` or `500,1000` means, oldest first.

    `all` passes over damaged ones, with a line on stderr, unless none is whole. Raises CheckpointError or ConfigError.
    """
    if names == "all":
        newest = run.newest_complete()  # refuses when there are some and all are damaged
        if newest is None:
            print(f"{run.path} has no checkpoint yet: only the base model is scored", file=sys.stderr)
        return [c for c in run.all_checkpoints() if _whole(c)]
    if names == "latest":
        newest = run.newest_complete()
        if newest is None:
            raise CheckpointError(f"{run.path}: no checkpoint yet; train first: dft train {run.path}")
        return [newest]
    steps = [part.strip() for part in names.split(",")]
    if not all(step.isdecimal() for step in steps):
        raise ConfigError(f"--checkpoints: {names!r} is neither all, latest nor steps such as 500,1000")
    return [checkpoint_at(run, step) for step in sorted(set(map(int, steps)))]


def checkpoint_at(run: RunDirectory, step: int) -> Checkpoint:
    """The complete checkpoint of a step. Raises CheckpointError, naming those there are."""
    found = {checkpoint.step: checkpoint for checkpoint in run.all_checkpoints()}
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise CheckpointError(f"{run.checkpoints}: no checkpoint of step {step} (there are: {there})")
    problem = found[step].verify()
    if problem is not None:
        raise CheckpointError(f"{found[step].path} is damaged: {problem}; choose another, or restore it from a copy")
    return found[step]


def _whole(checkpoint: Checkpoint) -> bool:
    problem = checkpoint.verify()
    if problem is not None:
        print(f"not scored, damaged or unfinished: {problem}", file=sys.stderr)
    return problem is None


def _others(run: RunDirectory, wanted: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Complete checkpoints that were scored before, besides those asked for."""
    steps = {checkpoint.step for checkpoint in wanted}
    before = [c for c in run.all_checkpoints() if c.step not in steps and (run.evaluation / c.name).is_dir()]
    return [c for c in before if c.verify() is None]


def _removed(claims: Sequence[Checkpoint], wanted: Sequence[Checkpoint]) -> list[Checkpoint]:
    """What a driver that followed the training had kept for scoring, of checkpoints that are gone."""
    steps = {checkpoint.step for checkpoint in wanted}
    return [claim for claim in claims if claim.step not in steps and claim.verify("model/") is None]


def _cut_off(tasks: Sequence[Task], engine: TransformersEngine) -> dict[str, CutOff]:
    """Tasks in which even a perfect answer would be cut off, and scored 0."""
    found = {}
    for task in tasks:
        first = task.request(task.examples()[0])
        if not isinstance(first, Generate):
            continue
        needed = [engine.answer_tokens(reference(example)) for example in task.examples()]
        limit = first.max_new_tokens
        over = sum(tokens > limit for tokens in needed)
        if over:
            found[task.name] = CutOff(over, len(needed), max(needed), limit)
            print(f"{task.name}: {found[task.name]}", file=sys.stderr)
    return found


def _few_shot(config: RunConfig, tasks: Sequence[Task], engine: TransformersEngine) -> dict[str, FewShot]:
    """The examples for each task that the run is trained for; none for the general suite."""
    trained_for = [task for task in tasks if task.kind == "task"]
    k = config.evaluation.few_shot
    if k == 0 or not trained_for:
        return {}
    train = rows_to_show(config.data)
    chosen = {}
    for task in trained_for:
        examples = choose(train, k, config.seed, task.examples())
        requests = [task.request(example) for example in task.examples()]
        chosen[task.name] = fitted(requests, examples, k, engine.context, engine.tokens)
        if chosen[task.name].reason:
            used = len(chosen[task.name].examples)
            print(f"{task.name}: {used} examples instead of {k}: {chosen[task.name].reason}", file=sys.stderr)
    return chosen


class Evaluation:
    """Scores of a run's models on its tasks, and what follows from them; the engine changes weights only when something
    is left to ask. For the holder of the evaluation lock."""

    def __init__(self, run: RunDirectory, config: RunConfig, tasks: Sequence[Task]) -> None:
        """Raises ConfigError, DataError: the base model or the examples to show cannot be used."""
        self._run, self._config, self._tasks = run, config, tasks
        self._engine = engine_of(config, config.evaluation.batch_size)
        self._cut_off = _cut_off(tasks, self._engine)
        self._few_shot = _few_shot(config, tasks, self._engine)
        self._base = self._engine.digest
        path = config.evaluation.generic_text
        self._generic_text = None if path is None else GenericText(path, self._engine)
        for names in ("*/*/.*", "*/.drift.json.*", ".summary.json.*"):  # of a killed driver
            for leftover in run.evaluation.glob(names):
                leftover.unlink(missing_ok=True)

    def tuned(self, checkpoint: Checkpoint) -> Model:
        """Raises CheckpointError when it was removed."""
        return Model(checkpoint.name, checkpoint.model, checkpoint.answers_digest(self._base), checkpoint.step)

    def conclude(self, scores: Scores) -> Summary:
        """Move BEST, or remove it when no checkpoint may be recommended; write the summary and the scalars.

        BEST names a checkpoint that is there: one that was removed before it was scored is passed over, and the reason
        says so.
        """
        everything = self._with_removed(scores)
        best = None
        while best is None or not best.published:  # removed meanwhile: the best of the others
            removed = {
                m.name for m in everything.checkpoints if not Checkpoint(self._run.checkpoints / m.name).published
            }
            budget = self._config.evaluation.select.forgetting_budget
            summary = summarise(everything, self._few_shot, budget, self._cut_off, removed)
            if summary.selection.step is None:
                self._run.best_file.unlink(missing_ok=True)
                break
            best = Checkpoint(self._run.checkpoints / step_name(summary.selection.step))
            self._run.point("BEST", best)
        summary = replace(summary, drift=self._drift(summary.scores))
        write_json(self._run.evaluation / "summary.json", as_json(summary))
        if "tensorboard" in self._config.tracking:
            log(self._run, everything, summary)
        return summary

    def scores_of_base(self) -> Scores:
        """Of the base model, and of the base with examples where there are any."""
        models = [Model(BASE, None, self._base, 0)]
        if any(f.examples for f in self._few_shot.values()):
            models.append(Model(FEW_SHOT, None, self._base, 0))
        scores = Scores((), {})
        for model in models:
            scores = scores.with_model(model, self.scores_of(model))
        return scores

    def _with_removed(self, scores: Scores) -> Scores:
        """And of checkpoints that were scored on the same questions before `checkpoint.keep` removed them."""
        known = {model.name for model in scores.models} | {c.name for c in self._run.all_checkpoints()}
        for name in sorted(path.name for path in self._run.evaluation.glob("step-*") if path.name not in known):
            model = Model(name, None, None, int(name.removeprefix("step-")))
            found = self.stored_scores_of(model)
            scores = scores.with_model(model, found) if found else scores
        return scores

    def stored_scores_of(self, model: Model) -> dict[str, Scored] | None:
        """By task; None unless every one is there."""
        found = {task.name: self._stored(model, task) for task in self._tasks}
        complete = {name: scored for name, scored in found.items() if scored is not None}
        return complete if len(complete) == len(found) else None

    def scores_of(self, model: Model) -> dict[str, Scored]:
        """By task, asking for what is not stored."""
        scored: dict[str, Scored] = {}
        in_use, text = False, self._text_to_ask(model)
        if text is not None:
            text.ask_base()  # before the model, so that full weights are loaded once
        for task in self._tasks:
            if model.name == FEW_SHOT and not self._shots(model, task):
                continue
            found = self._stored(model, task)
            if found is not None:
                self._run.answers(model.name, task.name).unlink(missing_ok=True)  # a kill came between
            else:
                if not in_use:
                    self._engine.use(model.weights)
                    in_use = True
                found = self._ask(model, task)
            scored[task.name] = found
            _progress(model, found)
        if text is not None:
            if not in_use:
                self._engine.use(model.weights)
            found_drift = text.measure(self._run, model)
            print(f"{model.name:14} KL to the base: {found_drift.kl:.4f} nats a token", file=sys.stderr, flush=True)
        return scored

    def _text_to_ask(self, model: Model) -> GenericText | None:
        """On which it is still to be measured how far a checkpoint is from the base."""
        text = self._generic_text
        return None if text is None or model.step == 0 or text.stored(self._run, model) else text

    def _drift(self, scores: Scores) -> dict[int, Drift]:
        """What is stored of the checkpoints, by step."""
        text = self._generic_text
        found = {m.step: text.stored(self._run, m) for m in scores.checkpoints} if text is not None else {}
        return {step: drift for step, drift in found.items() if drift is not None}

    def _ask(self, model: Model, task: Task) -> Scored:
        try:
            return score(self._run, self._engine, model, task, self._digest(model, task), self._shots(model, task))
        except EvaluationError as error:
            raise EvaluationError(f"{model.name}, {task.name}, {error}") from None

    def _shots(self, model: Model, task: Task) -> Sequence[Example]:
        return self._few_shot[task.name].examples if model.name == FEW_SHOT and task.name in self._few_shot else ()

    def _digest(self, model: Model, task: Task) -> str:
        return task_digest(task, self._engine.settings, self._shots(model, task))

    def _stored(self, model: Model, task: Task) -> Scored | None:
        return stored(self._run, model, task, self._digest(model, task))


def print_summary(summary: Summary) -> None:
    """The comparison, and which checkpoint to ship."""
    step = summary.selection.step
    print(table(summary))
    print(f"\nBEST: {'none' if step is None else f'step {step}'}: {summary.selection.reason}")


def _progress(model: Model, scored: Scored) -> None:
    result = scored.result
    how = "stored before" if scored.stored else f"{result.seconds:.1f} s"
    line = f"{model.name:14} {result.task}: {result.score:.3f} ± {result.stderr:.3f} on {result.n} items ({how})"
    print(line, file=sys.stderr, flush=True)
