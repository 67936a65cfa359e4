"""Evaluation beside a training: each checkpoint is scored as it is published, until the run is finished.

It needs nothing of the trainer and takes nothing from it: it reads the run directory, holds a lock of its own, and
writes under `evaluation/`, `BEST` and event files of its own. Where it is asked to (`evaluation.early_stop`) it also
says there whether more training helps. How far the training is, `progress.json` says; whether it
will go on when it has stopped, only a batch system knows (`--train-job`). Without one it waits, until it is told to
end. What can evaluate takes seconds to import, so that is done when what is published is claimed already.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from distributed_ft import imports
from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json, write_json
from distributed_ft.config.load import load_resolved
from distributed_ft.config.schema import EvaluationConfig, RunConfig
from distributed_ft.errors import CheckpointError, EvaluationError
from distributed_ft.evaluation.claims import POLL_SECONDS, Claims, claiming, release
from distributed_ft.jobs import is_live
from distributed_ft.records import Progress

if TYPE_CHECKING:
    from distributed_ft.evaluation.driver import Evaluation
    from distributed_ft.evaluation.summary import Scores, Summary

SAY_SECONDS = 60.0  # between two lines that say what is waited for
ASK_SECONDS = 15.0  # between two questions to Slurm, which answers everybody


def watch(run_dir: Path, job: str | None = None, num_processes: int = 1) -> None:
    """Score the base, then each checkpoint as it is published, and move BEST after each; returns when the run is
    finished, or its job has ended, and all is scored.

    Args:
        run_dir: a run directory; with a job, it may be made later.
        job: the Slurm job that trains it.
        num_processes: that answer.

    Raises:
        ConfigError, DataError: a task, its file or the base model cannot be used; a job without a Slurm.
        CheckpointError: no such run, or another driver evaluates it.
        EvaluationError: at the end, when some checkpoint could not be scored.
    """
    run = RunDirectory(run_dir)
    trainer = _Trainer(run, job)
    trainer.wait_for_directory()
    config = load_resolved(run.config)
    imports.leave_out([config])
    with run.evaluation_lock(), claiming(run) as claims:
        from distributed_ft.evaluation.driver import Evaluation
        from distributed_ft.evaluation.engines import opened
        from distributed_ft.evaluation.tasks import build_tasks
        from distributed_ft.model.load import quiet_libraries

        quiet_libraries()
        with opened(config, num_processes) as engine:
            evaluation = Evaluation(run, config, build_tasks(config.evaluation), engine)
            failed = _follow(evaluation, claims, trainer, run, config)
    if failed:
        raise EvaluationError("\n".join(failed))


def _follow(
    evaluation: "Evaluation", claims: Claims, trainer: "_Trainer", run: RunDirectory, config: RunConfig
) -> list[str]:
    """Score until there is nothing to wait for; what could not be scored, in words."""
    from distributed_ft.evaluation.driver import print_summary

    scores, failed = evaluation.scores_of_base(), list[str]()
    for claim in claims.waiting():  # before the first conclusion: BEST must not forget what an earlier driver scored
        model = evaluation.tuned(claim)
        found = evaluation.stored_scores_of(model)
        if found is not None and claim.verify("model/") is None:
            scores = scores.with_model(model, found)
            release(claim)
    summary = None
    while True:
        where = trainer.where(config.optim.max_steps)  # first: what it published before is then among the claims
        best = run.pointer("BEST")
        waiting = sorted(claims.waiting(), key=lambda c: (best is None or c.name != best.name, c.step))
        if waiting:  # what BEST names is first: it must not lose its name because its turn has not come
            scores, problem = _scored(evaluation, scores, waiting[0])
            failed += [problem] if problem else []
            release(waiting[0])
        lost = best is None or not best.published  # by a trainer that had looked just before BEST named it
        if waiting or summary is None or (lost and summary.selection.step is not None):
            summary = evaluation.conclude(scores)
            _tell_trainer(run, config.evaluation, summary)
            step = summary.selection.step
            print(f"BEST: {'none' if step is None else f'step {step}'}", file=sys.stderr, flush=True)
        elif where.over:
            print_summary(evaluation.finish(scores))
            if not where.finished:
                print(f"{where.says}; all that it left is scored", file=sys.stderr)
            return failed
        else:
            trainer.say(where.says)
            time.sleep(POLL_SECONDS)


def _scored(evaluation: "Evaluation", scores: "Scores", claim: Checkpoint) -> tuple["Scores", str | None]:
    """The scores with the checkpoint's, or what is wrong with it."""
    problem = claim.verify("model/")
    try:
        if problem is None:
            model = evaluation.tuned(claim)
            return scores.with_model(model, evaluation.scores_of(model)), None
        problem = f"{claim.name} is damaged: {problem}; not scored, the others are"
    except (CheckpointError, EvaluationError) as error:
        problem = f"{error}; not scored, the others are"
    print(problem, file=sys.stderr, flush=True)
    return scores, problem


def _tell_trainer(run: RunDirectory, settings: EvaluationConfig, summary: "Summary") -> None:
    """Whether more steps help, where it shall be told. A score of a step beyond LATEST is of an earlier training here,
    as is a verdict that nobody asked for."""
    from distributed_ft.evaluation.select import stop_verdict

    early, latest = settings.early_stop, run.pointer("LATEST")
    if early is None:
        run.stop_verdict.unlink(missing_ok=True)
        return
    candidates = [c for c in summary.everyone if latest is not None and c.step <= latest.step]
    verdict = stop_verdict(candidates, settings.select.forgetting_budget, early.patience, early.min_delta)
    if verdict is not None:
        write_json(run.stop_verdict, verdict.model_dump(by_alias=True))
        if verdict.stop:
            print(f"more training does not help: {verdict.reason}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Where:
    """How far a training is. `over`: nothing more will come of it, whether it is `finished` or not."""

    over: bool
    finished: bool
    says: str


class _Trainer:
    """What can be known of the training from outside: its progress, its checkpoints, its job."""

    def __init__(self, run: RunDirectory, job: str | None) -> None:
        self._run, self._job = run, job
        self._said = self._asked = float("-inf")
        self._gone = False

    def where(self, max_steps: int | None) -> Where:
        """`max_steps`: of the config, for a run that has no `progress.json`."""
        progress = _progress(self._run)
        steps = [checkpoint.step for checkpoint in self._run.all_checkpoints() if checkpoint.published]
        step = max([*steps, progress.step if progress else 0])
        total = progress.total_steps if progress and progress.total_steps else max_steps
        at = f"step {step}" + ("" if total is None else f" of {total}")
        if progress is not None and progress.phase == "finished":
            return Where(True, True, f"the training is finished at {at}")
        if total is not None and steps and steps[-1] >= total:
            return Where(True, True, f"the training is finished at {at}")
        if self._job is not None and self._job_is_gone(progress):
            return Where(True, False, f"the training has ended at {at}: Slurm has no job {self._job} any more")
        return Where(False, False, f"waiting for a checkpoint: {self._told(progress, at)}")

    def wait_for_directory(self) -> None:
        """Raises CheckpointError when there is none and none will come."""
        while not self._run.config.is_file():
            if self._job is None:
                raise CheckpointError(
                    f"{self._run.path}: not a run directory (no config.json); start the training first, or name its "
                    "job with --train-job"
                )
            if self._job_is_gone(None) and not self._run.config.is_file():
                raise CheckpointError(f"{self._run.path}: not a run directory, and Slurm has no job {self._job}")
            self.say(f"waiting for job {self._job} to begin: there is no {self._run.config} yet")
            time.sleep(POLL_SECONDS)

    def say(self, line: str) -> None:
        """At most one line a minute."""
        if time.monotonic() - self._said >= SAY_SECONDS:
            print(line, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    def _told(self, progress: Progress | None, at: str) -> str:
        """Who does not beat may be dead, or on a machine whose disk is slow to show here: a person has to look."""
        if progress is None:
            return f"no training has begun ({self._run.progress} is not there)"
        try:
            ago = max(0.0, time.time() - self._run.progress.stat().st_mtime)
        except FileNotFoundError:
            ago = 0.0
        ended = progress.phase in ("stopped", "failed")
        told = f"the training {progress.phase} at {at}" if ended else f"the training is at {at}, {progress.phase}"
        again = f"; `dft train {self._run.path}` continues it" if self._job is None else ""
        return f"{told}, {ago:.0f} s ago{again if ended or ago > SAY_SECONDS else ''}"

    def _job_is_gone(self, progress: Progress | None) -> bool:
        """Neither the job, nor one that was submitted in its place, is queued or running, as far as Slurm answers."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            assert self._job is not None
            jobs = dict.fromkeys([self._job, *_successors(self._run, progress)])
            self._gone = all(is_live(job) is False for job in jobs)
            self._asked = time.monotonic()
        return self._gone


def _progress(run: RunDirectory) -> Progress | None:
    try:
        return Progress(**read_json(run.progress))
    except (CheckpointError, ValidationError, TypeError):
        return None


def _successors(run: RunDirectory, progress: Progress | None) -> list[str]:
    """The job that trained last, and the one that was submitted last."""
    jobs = [progress.job] if progress is not None and progress.job else []
    try:
        return [*jobs, str(read_json(run.slurm / "job.json")["job"])]
    except (CheckpointError, KeyError, TypeError):
        return jobs
