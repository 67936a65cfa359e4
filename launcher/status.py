"""`dft status`, `dft logs` and `dft cancel`: what a run does, from its directory and from Slurm."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from distributed_ft import jobs
from distributed_ft.artifacts import RunDirectory, read_json
from distributed_ft.errors import EXIT_DONE, CheckpointError, ConfigError
from distributed_ft.records import Progress
from launcher import attempts, slurm
from launcher.check import Line, render

POLL_SECONDS = 0.5  # of `dft logs -f`
QUIET_SECONDS = 120  # a training that has not said anything for so long is shown as quiet


def status(run: RunDirectory) -> str:
    """Job, nodes, step, loss, speed, time left, newest checkpoint and requeues of one run."""
    return render([("run", str(run.path)), *_job_lines(run), *_progress_lines(run), *_checkpoint_lines(run)])


def overview(runs_dir: Path) -> str:
    """A line for each run in a directory, the one that moved last first."""
    runs = [RunDirectory(path) for path in runs_dir.iterdir() if (path / "config.json").is_file()]
    if not runs:
        raise ConfigError(f"{runs_dir}: no runs; `dft train run.yaml` or `dft submit run.yaml` makes one")
    rows = [("run", "phase", "step", "loss", "tokens/s", "ETA", "newest checkpoint", "job", "requeues")]
    for run in sorted(runs, key=_moved, reverse=True):
        progress, latest = progress_of(run), run.pointer("LATEST")
        try:
            job = job_of(run)
        except CheckpointError as error:  # one run hides no other
            job = None
            print(f"dft: warning: {error}", file=sys.stderr)
        rows.append(
            (
                run.name,
                progress.phase if progress else "not started",
                _steps(progress) if progress else "",
                f"{progress.loss:.4f}" if progress and progress.loss is not None else "",
                f"{progress.tokens_per_second:,.0f}" if progress and progress.tokens_per_second is not None else "",
                _time_left(progress) if progress else "",
                latest.name if latest else "",
                f"{job} {_state(job)}" if job else "",
                str(attempts.requeues(attempts.history(run))) if job else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def progress_of(run: RunDirectory) -> Progress | None:
    """Where its training is; None before one has begun."""
    try:
        return Progress(**read_json(run.progress)) if run.progress.exists() else None
    except (CheckpointError, ValidationError, TypeError):  # written by another version
        return None


def submitted(run: RunDirectory, key: Literal["job", "eval_job"]) -> str | None:
    """The number of the training's or the evaluation's job, as `dft submit` wrote it down. Raises CheckpointError."""
    file = run.slurm / "job.json"
    record = read_json(file) if file.exists() else {}
    if not isinstance(record, dict):
        raise CheckpointError(f"{file}: not what `dft submit` writes; delete it")
    return str(record[key]) if record.get(key) else None


def job_of(run: RunDirectory) -> str | None:
    """The number of the job that was last submitted for it. Raises CheckpointError."""
    number = submitted(run, "job")
    if number is not None:
        return number
    began = [event.job for event in attempts.history(run) if event.event == "begin"]  # submitted by hand
    return began[-1] if began else None


def _moved(run: RunDirectory) -> float:
    file = run.progress if run.progress.exists() else run.config
    return file.stat().st_mtime


def _job_lines(run: RunDirectory) -> Iterator[Line]:
    number = job_of(run)
    if number is None:
        return
    events = attempts.history(run)
    state = _state(number)
    reason = slurm.job(number).get("Reason", "None") if state == "pending" else "None"
    yield "job", f"{number}, {state}" + (f" ({reason})" if reason not in ("None", "") else "")
    nodes = next((event.nodes for event in reversed(events) if event.event == "begin"), ())
    if nodes:
        yield "nodes", ", ".join(nodes)
    yield "requeues", str(attempts.requeues(events))
    last = next((event for event in reversed(events) if event.event == "end"), None)
    if last is not None:
        yield "last ending", f"{last.outcome}: {last.message}" + (f"; {last.action}" if last.action else "")
    evaluation = submitted(run, "eval_job")
    if evaluation is not None:
        yield "evaluation", f"job {evaluation}, {_state(evaluation)}"


def _state(number: str) -> str:
    """In words, also where Slurm says nothing."""
    if not slurm.here():
        return "Slurm is not on this machine"
    known = slurm.state(number).lower()
    return known or ("gone from Slurm" if jobs.is_live(number) is False else "Slurm does not answer")


def _progress_lines(run: RunDirectory) -> Iterator[Line]:
    progress = progress_of(run)
    if progress is None:
        yield "phase", "not started"
        return
    seconds = (datetime.now(UTC) - datetime.fromisoformat(progress.updated)).total_seconds()
    moving = progress.phase not in ("finished", "stopped", "failed")
    quiet = f", not heard of for {_clock(seconds)}" if moving and seconds > QUIET_SECONDS else ""
    yield "phase", f"{progress.phase} on {progress.world_size} processes{quiet}"
    yield "step", _steps(progress)
    if progress.reason is not None:
        yield "ended early", progress.reason
    if progress.loss is not None:
        yield "loss", f"{progress.loss:.4f}"
    if progress.tokens_per_second is not None:
        yield "tokens/s", f"{progress.tokens_per_second:,.0f}"
    if moving and progress.eta_seconds is not None:
        yield "ETA", _clock(progress.eta_seconds)


def _checkpoint_lines(run: RunDirectory) -> Iterator[Line]:
    latest, best = run.pointer("LATEST"), run.pointer("BEST")
    yield "newest checkpoint", latest.name if latest else "none"
    if best is not None:
        yield "best checkpoint", best.name


def _steps(progress: Progress) -> str:
    return f"{progress.step:,} of {progress.total_steps:,}" if progress.total_steps is not None else "0"


def _time_left(progress: Progress) -> str:
    if progress.eta_seconds is None or progress.phase in ("finished", "stopped", "failed"):
        return ""
    return _clock(progress.eta_seconds)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


# --- logs ----------------------------------------------------------------------------------------------------------


def logs(run: RunDirectory, rank: int | None, follow: bool) -> int:
    """Print what a job said, or the log of one rank; `follow`: and go on as it grows, until interrupted."""
    path = _log(run, rank)
    position = _print_from(path, 0)
    while follow:
        time.sleep(POLL_SECONDS)
        now = _log(run, rank)
        path, position = (now, 0) if now != path else (path, position)  # a requeued job may have another number
        position = _print_from(path, position)
    return EXIT_DONE


def _log(run: RunDirectory, rank: int | None) -> Path:
    """Raises ConfigError, naming what there is."""
    if rank is not None:
        path = run.logs / f"rank-{rank}.log"
        if not path.exists():
            there = sorted(int(p.stem.removeprefix("rank-")) for p in run.logs.glob("rank-*.log"))
            which = f"there are: {', '.join(map(str, there))}" if there else "there are none yet"
            raise ConfigError(f"--rank: {rank}: no such log in {run.logs}; {which}")
        return path
    of_sweep = run.path.parent.glob(f"*.sweep/job-{job_of(run)}.out")
    written = [*run.slurm.glob("job-*.out"), *of_sweep] or [*run.logs.glob("rank-0.log")]
    if not written:
        raise ConfigError(f"{run.path}: has no logs yet")
    return max(written, key=lambda path: path.stat().st_mtime)


def _print_from(path: Path, position: int) -> int:
    with path.open("rb") as file:
        position = position if position <= file.seek(0, os.SEEK_END) else 0  # it was begun anew
        file.seek(position)
        sys.stdout.write(file.read().decode(errors="replace"))
        sys.stdout.flush()
        return file.tell()


# --- cancel --------------------------------------------------------------------------------------------------------


def cancel(run: RunDirectory) -> int:
    """End the run's jobs. What is running saves a checkpoint, if Slurm gives it the time, and can go on later."""
    number = job_of(run)
    if number is None:
        raise ConfigError(f"{run.path}: was not submitted to Slurm; end a local training with Ctrl-C")
    alive = [job for job in (number, submitted(run, "eval_job")) if job and slurm.alive(job)]
    again = f"dft submit {shlex.quote(str(run.path))}"
    if not alive:
        raise ConfigError(f"{run.path}: job {number} has ended already; `{again}` goes on")
    for job in alive:
        refused = slurm.cancel(job)
        if refused is not None:
            raise ConfigError(f"job {job}: Slurm would not cancel it: {refused}")
    print(f"cancelled job {', '.join(alive)}; go on later with: {again}")
    return EXIT_DONE
