"""The eval driver: base, base with examples, and every checkpoint, on the same items; then which one to ship.

A process of its own, beside the trainer or after it. It reads checkpoints by their manifests and writes scores, so it
can be killed at any moment and started again: what was scored stays, and a score is used again only for the very model
and question that it was made from. The trainer may remove a checkpoint at any moment (`checkpoint.keep`).
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from distributed_ft.artifacts import Checkpoint, RunDirectory, step_name, write_json
from distributed_ft.config.load import load_resolved
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.sources import Example, read_examples
from distributed_ft.errors import CheckpointError, ConfigError, EvaluationError
from distributed_ft.evaluation.engines import TransformersEngine, engine_of
from distributed_ft.evaluation.few_shot import FewShot, choose, fitted, source_of_examples
from distributed_ft.evaluation.scoring import Model, Scored, score, stored, task_digest
from distributed_ft.evaluation.stats import mean, mean_of
from distributed_ft.evaluation.summary import BASE, FEW_SHOT, Scores, as_json, summarise, table
from distributed_ft.evaluation.task import CutOff, Task, reference
from distributed_ft.evaluation.tasks import build_tasks

EVENTS_SUFFIX = ".evaluation"  # of this driver's TensorBoard files: it replaces its own and no others


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
    engine = engine_of(config, config.evaluation.batch_size)
    cut_off = _cut_off(tasks, engine)
    few_shot = _few_shot(config, tasks, engine)
    evaluation = _Evaluation(run, tasks, engine, few_shot)
    scores, failed = _all_scores(run, evaluation, engine.digest, wanted)
    _conclude(run, scores, few_shot, cut_off, config.evaluation.select.forgetting_budget)
    if "tensorboard" in config.tracking:
        _log(run, evaluation.with_removed(scores))
    if failed:
        raise EvaluationError("\n".join(failed))


def _all_scores(
    run: RunDirectory, evaluation: "_Evaluation", base: str, wanted: Sequence[Checkpoint]
) -> tuple[Scores, list[str]]:
    """Of base, few-shot, the checkpoints asked for, and others that were scored before; and what failed.

    What a checkpoint gets wrong is its own affair. Without the base's scores there is nothing to compare with.
    """
    scores, failed = evaluation.scores_of_base(base), []
    before = _others(run, wanted)
    for checkpoint in [*wanted, *before]:
        try:
            model = _tuned(base, checkpoint)
            found = evaluation.stored_scores_of(model) if checkpoint in before else evaluation.scores_of(model)
            scores = scores.with_model(model, found) if found else scores
        except EvaluationError as error:
            failed.append(f"{error}; not scored, the others are")
        except CheckpointError:
            if _there(checkpoint):
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


def _there(checkpoint: Checkpoint) -> bool:
    """A checkpoint that is removed loses its manifest first."""
    return (checkpoint.path / "manifest.json").is_file()


def _cut_off(tasks: Sequence[Task], engine: TransformersEngine) -> dict[str, CutOff]:
    """Tasks in which even a perfect answer would be cut off, and scored 0."""
    found = {}
    for task in tasks:
        needed = [engine.answer_tokens(reference(example)) for example in task.examples()]
        limit = task.request(task.examples()[0]).max_new_tokens
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
    train = read_examples(source_of_examples(config.data))
    chosen = {}
    for task in trained_for:
        examples = choose(train, k, config.seed, task.examples())
        requests = [task.request(example) for example in task.examples()]
        chosen[task.name] = fitted(requests, examples, k, engine.context, lambda m: len(engine.prompt(m)))
        if chosen[task.name].reason:
            used = len(chosen[task.name].examples)
            print(f"{task.name}: {used} examples instead of {k}: {chosen[task.name].reason}", file=sys.stderr)
    return chosen


def _tuned(base: str, checkpoint: Checkpoint) -> Model:
    return Model(checkpoint.name, checkpoint.model, checkpoint.answers_digest(base), checkpoint.step)


class _Evaluation:
    """Scores of models on tasks; the engine changes weights only when something is left to ask."""

    def __init__(
        self, run: RunDirectory, tasks: Sequence[Task], engine: TransformersEngine, few_shot: dict[str, FewShot]
    ) -> None:
        self._run, self._tasks, self._engine, self._few_shot = run, tasks, engine, few_shot

    def scores_of_base(self, digest: str) -> Scores:
        """Of the base model, and of the base with examples where there are any."""
        models = [Model(BASE, None, digest, 0)]
        if any(f.examples for f in self._few_shot.values()):
            models.append(Model(FEW_SHOT, None, digest, 0))
        scores = Scores((), {})
        for model in models:
            scores = scores.with_model(model, self.scores_of(model))
        return scores

    def with_removed(self, scores: Scores) -> Scores:
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
        in_use = False
        for task in self._tasks:
            if model.name == FEW_SHOT and not self._shots(model, task):
                continue
            found = self._stored(model, task)
            if found is None:
                if not in_use:
                    self._engine.use(model.weights)
                    in_use = True
                found = self._ask(model, task)
            scored[task.name] = found
            _progress(model, found)
        return scored

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


def _progress(model: Model, scored: Scored) -> None:
    result = scored.result
    how = "stored before" if scored.stored else f"{result.seconds:.1f} s"
    line = f"{model.name:14} {result.task}: {result.score:.3f} ± {result.stderr:.3f} on {result.n} items ({how})"
    print(line, file=sys.stderr, flush=True)


def _log(run: RunDirectory, scores: Scores) -> None:
    """All scores as scalars beside the trainer's; those of an earlier evaluation are replaced, not repeated."""
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(run.tensorboard.glob(f"*{EVENTS_SUFFIX}"))
    writer = SummaryWriter(str(run.tensorboard), filename_suffix=EVENTS_SUFFIX)
    for model in scores.models:
        if model.name != FEW_SHOT:  # a prompt has no place on the axis of steps
            for tag, value in _scalars(scores, model):
                writer.add_scalar(tag, value, model.step)
    best = run.pointer("BEST")
    if best is not None and best.name in scores.of:
        for tag, value in _scalars_of_best(scores, best.name):
            writer.add_scalar(tag, value, best.step)
    writer.close()
    for path in earlier:
        path.unlink(missing_ok=True)


def _scalars(scores: Scores, model: Model) -> Iterator[tuple[str, float]]:
    for task, scored in scores.of[model.name].items():
        if scored.result.kind == "task":
            for metric, value in {scored.result.metric: scored.result.score, **scored.result.scores}.items():
                yield f"eval/{task}/{metric}", value
    general, lost = scores.general_mean(model.name), scores.forgotten(model.name)
    if general is not None and lost is not None:
        yield "eval/general/score", general.value
        yield "eval/forgetting/rate", lost.rate
        yield "eval/forgetting/mean_drop", lost.mean_drop


def _scalars_of_best(scores: Scores, name: str) -> Iterator[tuple[str, float]]:
    """For the HParams tab, which shows the last value of a curve, and that is the last checkpoint's."""
    by_task, lost = scores.by_task(name), scores.forgotten(name)
    if by_task:
        yield "best/task_accuracy", mean_of([mean(items) for items in by_task.values()]).value
    if lost is not None:
        yield "best/forgetting", lost.rate


def _conclude(
    run: RunDirectory, scores: Scores, few_shot: dict[str, FewShot], cut_off: dict[str, CutOff], budget: float
) -> None:
    """Move BEST, or remove it when no checkpoint may be recommended; write the summary and print the table."""
    best = None
    while best is None or not _there(best):  # removed meanwhile: the best of the others
        scores = scores.of_models(lambda m: m.weights is None or _there(Checkpoint(run.checkpoints / m.name)))
        summary = summarise(scores, few_shot, budget, cut_off)
        step = summary.selection.step
        if step is None:
            run.best_file.unlink(missing_ok=True)
            break
        best = Checkpoint(run.checkpoints / step_name(step))
        run.point("BEST", best)
    write_json(run.evaluation / "summary.json", as_json(summary))
    print(table(summary))
    print(f"\nBEST: {'none' if step is None else f'step {step}'}: {summary.selection.reason}")
