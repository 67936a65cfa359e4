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
from distributed_ft.errors import CheckpointError, EvaluationError
from distributed_ft.evaluation.checkpoints import kept_by_claims, named, scored_before
from distributed_ft.evaluation.claims import claimed, release
from distributed_ft.evaluation.drift import GenericText, Predicts
from distributed_ft.evaluation.engines import Engine, opened
from distributed_ft.evaluation.few_shot import FewShot, Try, best_of, choose, fitted, rows_to_show, to_try
from distributed_ft.evaluation.scalars import log, log_strength
from distributed_ft.evaluation.scoring import Model, Scored, adopt, at_strength, score, stored, task_digest
from distributed_ft.evaluation.strength import Scaled, frontier, on_test
from distributed_ft.evaluation.summary import (
    BASE,
    FEW_SHOT,
    Scores,
    Summary,
    as_json,
    how_chosen,
    strength_table,
    summarise,
    table,
    tried,
)
from distributed_ft.evaluation.task import VALIDATION, CutOff, Generate, Task, reference, takes_examples
from distributed_ft.evaluation.tasks import build_tasks
from distributed_ft.records import Drift


def evaluate(run_dir: Path, checkpoints: str = "all", num_processes: int = 1) -> None:
    """Score a run, choose BEST, and print the comparison.

    Args:
        run_dir: a run directory.
        checkpoints: `all`, `latest`, or steps such as `500,1000`. Others that were scored before still take part in
            the choice of BEST.
        num_processes: that answer, each with a model of its own; they decide nothing but how long it takes.

    Raises:
        ConfigError, DataError: a task, its file or the base model cannot be used.
        CheckpointError: no such run or checkpoint, or all checkpoints are damaged.
        EvaluationError: a score cannot be computed. Of a checkpoint: at the end, when the others are scored.
        EngineError: a process that answers has died.
    """
    run = RunDirectory(run_dir)
    config = load_resolved(run.config)
    tasks = build_tasks(config.evaluation)
    wanted = named(run, checkpoints)
    with run.evaluation_lock(), opened(config, num_processes) as engine:
        left = claimed(run) if checkpoints == "all" else []
        evaluation = Evaluation(run, config, tasks, engine)
        scores, failed = _all_scores(run, evaluation, [*kept_by_claims(left, wanted), *wanted])
        print_summary(evaluation.finish(scores))
        for claim in left:
            release(claim)
    if failed:
        raise EvaluationError("\n".join(failed))


def _all_scores(run: RunDirectory, evaluation: "Evaluation", wanted: Sequence[Checkpoint]) -> tuple[Scores, list[str]]:
    """Of base, few-shot, the checkpoints asked for, and others that were scored before; and what failed.

    What a checkpoint gets wrong is its own affair. Without the base's scores there is nothing to compare with.
    """
    scores, failed = evaluation.scores_of_base(), []
    before = scored_before(run, wanted)
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


def _cut_off(tasks: Sequence[Task], engine: Engine) -> dict[str, CutOff]:
    """Tasks in which even a perfect answer would be cut off, and scored 0."""
    found = {}
    for task in tasks:
        first = task.request(task.examples()[0])
        if not isinstance(first, Generate) or first.open_ended or not takes_examples(first):
            continue
        needed = [engine.answer_tokens(reference(example)) for example in task.examples()]
        limit = first.max_new_tokens
        over = sum(tokens > limit for tokens in needed)
        if over:
            found[task.name] = CutOff(over, len(needed), max(needed), limit)
            print(f"{task.name}: {found[task.name]}", file=sys.stderr)
    return found


def _few_shot(config: RunConfig, tasks: Sequence[Task], engine: Engine) -> dict[str, FewShot]:
    """As many examples as may be shown for each task that the run is trained for; none for the general suite."""
    trained_for = [t for t in tasks if t.kind == "task" and takes_examples(t.request(t.examples()[0]))]
    k = config.evaluation.shots[-1]
    if k == 0 or not trained_for:
        return {}
    train = rows_to_show(config.data)
    chosen = {}
    for task in trained_for:
        asked = [t for t in tasks if t.name in (task.name, task.name + VALIDATION)]
        examples = choose(train, k, config.seed, [example for t in asked for example in t.examples()])
        requests = [t.request(example) for t in asked for example in t.examples()]
        chosen[task.name] = fitted(requests, examples, k, engine.context, engine.tokens)
        if chosen[task.name].reason:
            used = len(chosen[task.name].examples)
            print(f"{task.name}: {used} examples instead of {k}: {chosen[task.name].reason}", file=sys.stderr)
    return chosen


class Evaluation:
    """Scores of a run's models on its tasks, and what follows from them; the engine changes weights only when something
    is left to ask. For the holder of the evaluation lock."""

    def __init__(self, run: RunDirectory, config: RunConfig, tasks: Sequence[Task], engine: Engine) -> None:
        """Raises DataError: the examples to show cannot be used."""
        self._run, self._config, self._tasks, self._engine = run, config, tasks, engine
        self._cut_off = _cut_off(tasks, self._engine)
        by = {task.name for task in tasks if task.kind == "validation"}
        self._kept = [task for task in tasks if task.name + VALIDATION in by]  # of base, few-shot, the chosen one only
        self._few_shot = _few_shot(config, tasks, self._engine)
        self._prompts: dict[tuple[str, str], Sequence[Example]] = {}  # by model and task
        self._base = self._engine.digest
        path = config.evaluation.generic_text
        self._generic_text = GenericText(path, engine) if path is not None and isinstance(engine, Predicts) else None
        for names in ("*/*/.*", "*/.drift.json.*", ".summary.json.*"):  # of a killed driver
            for leftover in run.evaluation.glob(names):
                leftover.unlink(missing_ok=True)

    def tuned(self, checkpoint: Checkpoint) -> Model:
        """Raises CheckpointError when it was removed."""
        return Model(checkpoint.name, checkpoint.model, checkpoint.answers_digest(self._base), checkpoint.step)

    def finish(self, scores: Scores) -> Summary:
        """Conclude, and ask what was chosen on validation rows the test rows, once; the summary has its score on them.

        Raises EvaluationError when that cannot be computed; BEST and the summary are there by then.
        """
        summary = self.conclude(scores)
        while self._kept and summary.selection.step is not None:
            chosen = Checkpoint(self._run.checkpoints / step_name(summary.selection.step))
            if all(task.name in summary.scores.of[chosen.name] for task in self._kept):
                break
            try:
                model = self.tuned(chosen)
                scores = scores.with_more(model, self._scores_on(self._kept, model))
            except CheckpointError:
                if chosen.published:
                    raise
            summary = self.conclude(scores)  # of the others, when it was removed meanwhile
        return self._with_strengths(summary)

    def _with_strengths(self, summary: Summary) -> Summary:
        """And with the scores of the selected checkpoint's adapter at each strength that was asked for; where none is
        inside the budget, of the most accurate one's, which may be at less than its full strength."""
        scored = [c for c in summary.candidates if c.tasks]
        strengths = sorted(set(self._config.evaluation.adapter_strength))
        if not strengths or not scored:
            return summary
        step = summary.selection.step
        step = max(scored, key=lambda c: (c.accuracy, -c.step)).step if step is None else step
        checkpoint = Checkpoint(self._run.checkpoints / step_name(step))
        scores, scaled = summary.scores, []
        try:
            whole = self.tuned(checkpoint)
            for strength in strengths:
                model = at_strength(whole, strength)
                scores = scores.with_model(model, self.scores_of(model))
                scaled.append(_at(strength, scores, model))
            scaled.append(_at(1.0, scores, whole))
            base = Scaled(0.0, scores.to_choose_by(BASE), None, scores.clusters())
            found = frontier(step, base, scaled, summary.budget)
            if self._kept and found.recommended in strengths:
                model = at_strength(whole, found.recommended)
                found = replace(found, on_test=on_test([s.result for s in self._scores_on(self._kept, model).values()]))
        except CheckpointError as error:
            if checkpoint.published:
                raise
            print(f"{checkpoint.name}: removed meanwhile, not scaled ({error})", file=sys.stderr)
            return summary
        summary = replace(summary, strength=found)
        write_json(self._run.evaluation / "summary.json", as_json(summary))
        if "tensorboard" in self._config.tracking:
            log_strength(self._run, found)
        return summary

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
        """Of the base model, and of the base with examples where there are any, as many of them as do best."""
        base = Model(BASE, None, self._base, 0)
        scores = Scores((), {}).with_model(base, self._scores_on(self._tasks, base))
        self._choose_prompts()
        if any(f.examples for f in self._few_shot.values()):
            few_shot = Model(FEW_SHOT, None, self._base, 0)
            scores = scores.with_model(few_shot, self._scores_on(self._tasks, few_shot))
        return scores

    def _choose_prompts(self) -> None:
        """Ask the validation rows with each number of examples, where there is a choice, and keep to the best."""
        few_shot = Model(FEW_SHOT, None, self._base, 0)
        for name, most in self._few_shot.items():
            tries = to_try(self._config.evaluation.shots, len(most.examples))
            by = next((task for task in self._tasks if task.name == name + VALIDATION), None)
            found = {k: self._with_shots(by, most, k) for k in tries} if by is not None and len(tries) > 1 else {}
            items = {k: [sample.score for sample in scored.samples] for k, scored in found.items()}
            k = best_of(items) if items else max(tries, default=0)
            tried = tuple(Try(k, each.result.score, each.result.stderr, each.result.n) for k, each in found.items())
            self._few_shot[name] = replace(most, examples=most.examples[:k], tried=tried)
            for task in (name, name + VALIDATION):
                self._prompts[FEW_SHOT, task] = self._few_shot[name].examples
            if by is not None and found and self._stored(few_shot, by) is None:
                adopt(self._run, found[k], FEW_SHOT)

    def _with_shots(self, task: Task, most: FewShot, k: int) -> Scored:
        """The base's score with the first k examples."""
        model = Model(f"{FEW_SHOT}-{k}", None, self._base, 0)
        self._prompts[model.name, task.name] = most.examples[:k]
        return self._scores_on([task], model)[task.name]

    def _with_removed(self, scores: Scores) -> Scores:
        """And of checkpoints that were scored on the same questions before `checkpoint.keep` removed them."""
        known = {model.name for model in scores.models} | {c.name for c in self._run.all_checkpoints()}
        there = [path.name for path in self._run.evaluation.glob("step-*") if "@" not in path.name]
        for name in sorted(set(there) - known):
            model = Model(name, None, None, int(name.removeprefix("step-")))
            found = self.stored_scores_of(model)
            scores = scores.with_model(model, found) if found else scores
        return scores

    def stored_scores_of(self, model: Model) -> dict[str, Scored] | None:
        """By task, with those on test rows where they were asked; None unless every one is there that all checkpoints
        are asked for."""
        found = {task.name: self._stored(model, task) for task in self._tasks}
        complete = {name: scored for name, scored in found.items() if scored is not None}
        wanted = {task.name for task in self._tasks if task not in self._kept}
        return complete if wanted <= complete.keys() else None

    def scores_of(self, model: Model) -> dict[str, Scored]:
        """By task, asking a checkpoint for what is not stored; the test rows of tasks with validation rows are kept."""
        scored = self._scores_on([task for task in self._tasks if task not in self._kept], model)
        kept = {task.name: self._stored(model, task) for task in self._kept}
        return scored | {name: found for name, found in kept.items() if found is not None}

    def _scores_on(self, tasks: Sequence[Task], model: Model) -> dict[str, Scored]:
        scored: dict[str, Scored] = {}
        in_use, text = False, self._text_to_ask(model)
        if text is not None:
            text.ask_base()  # before the model, so that full weights are loaded once
        for task in tasks:
            if model.name.startswith(FEW_SHOT) and not self._shots(model, task):
                continue
            found = self._stored(model, task)
            if found is not None:
                self._run.answers(model.name, task.name).unlink(missing_ok=True)  # a kill came between
            else:
                if not in_use:
                    self._engine.use(model.weights, model.strength)
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
        measured = text is None or model.step == 0 or model.strength != 1 or text.stored(self._run, model)
        return None if measured else text

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
        return self._prompts.get((model.name, task.name), ())

    def _digest(self, model: Model, task: Task) -> str:
        return task_digest(task, self._engine.settings, self._shots(model, task))

    def _stored(self, model: Model, task: Task) -> Scored | None:
        return stored(self._run, model, task, self._digest(model, task))


def _at(strength: float, scores: Scores, model: Model) -> Scaled:
    """The scores of a checkpoint's adapter at some strength."""
    return Scaled(strength, scores.to_choose_by(model.name), scores.forgotten(model.name), scores.clusters())


def print_summary(summary: Summary) -> None:
    """The comparison, and which checkpoint to ship."""
    step = summary.selection.step
    print(table(summary))
    print(f"\nBEST: {'none' if step is None else f'step {step}'}: {summary.selection.reason}")
    if summary.strength is not None:
        best = summary.strength.recommended
        print(f"\n{strength_table(summary.strength)}\n")
        print(f"strength: {'none' if best is None else f'{best:g}'}: {summary.strength.reason}")
        for row in summary.strength.on_test:
            print(
                f"at {best:g} on the {row.n} test rows of {row.task}: {row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
            )
    for line in (*tried(summary), how_chosen(summary)):
        if line is not None:
            print(line)


def _progress(model: Model, scored: Scored) -> None:
    result = scored.result
    how = "stored before" if scored.stored else f"{result.seconds:.1f} s"
    line = f"{model.name:14} {result.task}: {result.score:.3f} ± {result.stderr:.3f} on {result.n} items ({how})"
    line += f", {100 * result.empty:.0f}% of the answers are empty" if result.empty else ""
    print(line, file=sys.stderr, flush=True)
