"""`dft verify-resume`: is the resumed run the run that would have been, on the user's own config?

The real commands in a throw-away directory, on the run's own data and schedule: one training is left alone, a second
one is killed after half of the steps and resumed; then they are compared, bit by bit.
"""

import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json_lines, step_name
from distributed_ft.config.load import LoadedRun
from distributed_ft.config.schema import LowRank, RunConfig
from distributed_ft.errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, CheckpointError, ConfigError
from distributed_ft.roll import end_with_parent
from launcher.plan import Start
from launcher.processes import heeding
from launcher.trial import throw_away
from launcher.verify import TOLERANCES

SHARE_OF_DISK = 0.8  # of what is free, for the checkpoints of both trainings
MARGIN = 4  # checkpoints that a training may write until it heeds the request to stop, or writes now
TAIL = 30  # lines of a command that failed


@dataclass(frozen=True)
class Trial:
    """What is done: so many steps, saved every so many, resumed on so many processes."""

    loaded: LoadedRun
    start: Start
    steps: int
    every: int
    resume_nproc: int
    folder: Path

    @property
    def half(self) -> int:
        return self.steps // 2

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.folder / name)


class _Failed(Exception):
    """A training ended as it should not, with this exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


def verify_resume(loaded: LoadedRun, start: Start, steps: int, resume_nproc: int | None = None) -> int:
    """Returns 0 when nothing differs (with another number of processes: not more than the tolerance), 1 when something
    does, and the code of a training that fails.

    Raises ConfigError when it cannot be done: too few steps, no room, random numbers that another number of processes
    draws otherwise. Raises KeyboardInterrupt when asked to stop; nothing is left.
    """
    config = loaded.config
    again = start.num_processes if resume_nproc is None else resume_nproc
    _refuse_other_noise(config, start.num_processes, again)
    every = _saved_every(config, start.num_processes, steps)
    with heeding(_interrupt), throw_away(config, "verify-resume") as folder:
        trial = Trial(loaded, start, steps, every, again, folder)
        _share_cache(config, folder)
        try:
            _say("1/3 uninterrupted: from the start, then asked to stop")
            _train_until(trial, "uninterrupted", start.num_processes, steps)
            _say(f"2/3 another, from the start: will be killed after step {trial.half} is saved")
            resumed_from = _train_and_kill(trial, "resumed")
            _say(f"3/3 resumed from step {resumed_from} in new processes")
            _train_until(trial, "resumed", again, steps)
        except _Failed as failed:
            return failed.code
        return _judge(trial, resumed_from)


def _interrupt(_: list[int]) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"verify-resume: {text}", flush=True)


def _refuse_other_noise(config: RunConfig, nproc: int, again: int) -> None:
    noise = {}
    if isinstance(config.method, LowRank) and again != nproc:
        noise = {"method.dropout": config.method.dropout, "method.neftune_alpha": config.method.neftune_alpha}
    for key, value in noise.items():
        if value:
            raise ConfigError(
                f"{key}: {value}: every process draws its own random numbers, so losses on {nproc} and on {again} "
                f"processes differ by more than rounding; try the rest with {key}={'0' if 'drop' in key else 'null'}"
            )


def _saved_every(config: RunConfig, nproc: int, steps: int) -> int:
    """As often as the disk allows, so that half of the steps and all of them are saved. Says what it found."""
    from distributed_ft.train import preflight

    inspection = preflight.inspect(config, nproc)
    total, size = inspection.total_steps, inspection.checkpoint_bytes
    if steps > total:
        raise ConfigError(f"--steps: {steps}: the run has {total} steps; give --steps {total} or less")
    Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.runs_dir).free
    both = math.gcd(steps // 2, steps)
    for every in (n for n in range(1, both + 1) if both % n == 0):
        needed = 2 * (steps // every + MARGIN) * size
        if needed <= SHARE_OF_DISK * free:
            _say(
                f"a checkpoint every {'step' if every == 1 else f'{every} steps'}: {needed / 2**30:.2f} GiB at most in "
                f"{config.runs_dir}, {free / 2**30:.1f} GiB are free"
            )
            _say(f"data, seed and the schedule of {total} steps are the run's own; only checkpoints come more often")
            return every
    raise ConfigError(
        f"runs_dir: {config.runs_dir}: {needed / 2**30:.1f} GiB for checkpoints are needed, {free / 2**30:.1f} GiB are "
        "free; make room, or choose another runs_dir"
    )


def _share_cache(config: RunConfig, folder: Path) -> None:
    """Tokenised data is kept where the run itself will look for it."""
    cache = Path(config.runs_dir).absolute() / ".cache"
    cache.mkdir(exist_ok=True)
    (folder / ".cache").symlink_to(cache)


# --- trainings -----------------------------------------------------------------------------------------------------


def _command(trial: Trial, name: str, nproc: int) -> list[str]:
    config, start = trial.loaded.config, trial.start
    changes = {
        "name": name,
        "runs_dir": str(trial.folder),
        "checkpoint.every": trial.every,
        "checkpoint.keep": 1000 * trial.steps,
        "evaluation.validation_every": config.evaluation.validation_every or config.checkpoint.every,
        "tracking": [],
    }
    file = ["--accelerate-config", str(start.accelerate_file)] if start.accelerate_file else []
    return [
        *(sys.executable, "-m", "launcher", "train", str(trial.loaded.source), *trial.loaded.overrides),
        *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()),
        *("--nproc", str(nproc), "--launcher", start.launcher, *file),
    ]


def _until(trial: Trial, name: str, nproc: int, moment: Callable[[], bool], number: signal.Signals) -> int:
    """Start (or resume) a training, and send the command this signal at that moment; its exit code.

    The ranks end with the command that started them: when it is killed, the kernel kills them."""
    log = trial.folder / f"{name}.out"
    with log.open("ab") as output, TemporaryDirectory(prefix="dft-", ignore_cleanup_errors=True) as scratch:
        child = subprocess.Popen(
            _command(trial, name, nproc),
            env={**os.environ, "TMPDIR": scratch},  # who is killed cannot tidy up
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            while child.poll() is None and not moment():
                time.sleep(0.005)
            if child.poll() is None:
                os.kill(child.pid, number)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            _wait_until_free(trial.run(name))
    if code not in (EXIT_DONE, EXIT_STOPPED, -signal.SIGKILL):
        print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]), file=sys.stderr)
        _say(f"FAILED: the training ended with exit code {code}: {shlex.join(_command(trial, name, nproc)[2:])}")
        raise _Failed(code if code > 0 else EXIT_FAULT)
    return code


def _train_until(trial: Trial, name: str, nproc: int, step: int) -> None:
    run = trial.run(name)
    _until(trial, name, nproc, lambda: _saved(run, step), signal.SIGTERM)
    if not _saved(run, step):
        _say(f"FAILED: the training ended before step {step} was saved")
        raise _Failed(EXIT_FAULT)


def _train_and_kill(trial: Trial, name: str) -> int:
    """Kill it at a random moment of a step (seeded) after half of the steps are saved; the step to resume from."""
    run, draw = trial.run(name), random.Random(trial.loaded.config.seed)

    def moment() -> bool:
        if not _saved(run, trial.half):
            return False
        seconds = [line["step_seconds"] for line in read_json_lines(run.metrics) if "loss" in line]
        time.sleep(draw.random() * sorted(seconds)[len(seconds) // 2])
        return True

    code = _until(trial, name, trial.start.num_processes, moment, signal.SIGKILL)
    newest = run.newest_complete()
    if code != -signal.SIGKILL or newest is None or newest.step >= trial.steps:
        raise ConfigError(
            f"--steps: {trial.steps}: steps are so quick that the training was done before it was killed; give more"
        )
    writing = ", a checkpoint half-written" if list(run.checkpoints.glob(".step-*.partial")) else ""
    last = max(line["step"] for line in read_json_lines(run.metrics))
    _say(f"    killed (SIGKILL) after step {last}{writing}; the newest complete checkpoint is of step {newest.step}")
    return newest.step


def _saved(run: RunDirectory, step: int) -> bool:
    return (run.checkpoints / step_name(step) / "manifest.json").is_file()


def _wait_until_free(run: RunDirectory) -> None:
    """Until no process of a training is left; they hold the directory."""
    deadline = time.monotonic() + 30
    while run.path.exists():
        try:
            with run.lock():
                return
        except CheckpointError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- judgement -----------------------------------------------------------------------------------------------------


def _judge(trial: Trial, resumed_from: int) -> int:
    from launcher import sameness

    a, b = trial.run("uninterrupted"), trial.run("resumed")
    before, after = range(1, resumed_from + 1), range(resumed_from + 1, trial.steps + 1)
    control = sameness.metrics_differ(a, b, before)
    if trial.resume_nproc != trial.start.num_processes or control is not None:
        return _judge_by_tolerance(trial, a, b, after, control)
    tensors = 0
    for step in range(trial.every, trial.steps + 1, trial.every):
        span = range(step - trial.every + 1, step + 1)
        first = sameness.metrics_differ(a, b, span)
        if first is None:
            first, count = sameness.model_differs(*_pair(a, b, step))
            tensors += count
        if first is not None:
            when = "after" if step > resumed_from else "before"
            _say(f"DIFFERENT: {first} (uninterrupted and resumed; {when} the resume at step {resumed_from})")
            return EXIT_FAULT
    first, stored = sameness.state_differs(*_pair(a, b, trial.steps))
    if first is not None:
        _say(f"DIFFERENT: {first} (uninterrupted and resumed)")
        return EXIT_FAULT
    print(
        f"identical: steps 1 to {trial.steps}, resumed at {resumed_from}: {', '.join(sameness.METRICS)} of each step, "
        f"all {tensors:,} saved tensors of {trial.steps // trial.every} checkpoints, and at step {trial.steps} all "
        f"{stored:,} entries of resume state (parameters, optimizer, random state, position): not a bit differs"
    )
    return EXIT_DONE


def _judge_by_tolerance(trial: Trial, a: RunDirectory, b: RunDirectory, after: range, control: object) -> int:
    """Same global batches, and losses within rounding; of another world size, or of a machine whose kernels add in
    another order each time, no more can be asked."""
    from launcher import sameness

    if control is not None:
        _say(f"this machine does not repeat itself, even before the kill: {control}; so not bit by bit, but:")
    first, second = sameness.steps_of(a), sameness.steps_of(b)
    for step in after:
        for name in ("samples", "tokens", "lr"):
            if step not in second or first[step][name] != second[step][name]:
                _say(f"DIFFERENT: step {step}: {name}: {first[step][name]} and {second.get(step, {}).get(name)}")
                return EXIT_FAULT
    limit = TOLERANCES[trial.loaded.config.model.dtype]
    worst, at = sameness.largest_difference(b, a, after, "loss")
    norm, norm_at = sameness.largest_difference(b, a, after, "grad_norm")
    figures = (
        f"largest relative difference of a loss {worst:.1e} (step {at}), of a gradient norm {norm:.1e} (step {norm_at})"
    )
    if worst > limit:
        _say(f"DIFFERENT: {figures}; losses may differ by {limit:g} in {trial.loaded.config.model.dtype}")
        return EXIT_FAULT
    world = f"{trial.resume_nproc} process{'es' if trial.resume_nproc > 1 else ''}" + (
        "" if trial.resume_nproc == trial.start.num_processes else f" instead of {trial.start.num_processes}"
    )
    print(
        f"the same run within rounding: steps {after.start} to {trial.steps} on {world} have the same samples in the "
        f"same order, the same tokens and rates; {figures}, allowed {limit:g}"
    )
    return EXIT_DONE


def _pair(a: RunDirectory, b: RunDirectory, step: int) -> tuple[Checkpoint, Checkpoint]:
    return Checkpoint(a.checkpoints / step_name(step)), Checkpoint(b.checkpoints / step_name(step))
