"""Runs a training or an evaluation on this machine, and reports its exit code.

The ranks are our own children, each in one session of their own: Ctrl-C reaches this process alone, which passes it on
as a request to stop, and the code with which the ranks end (0, 1, 2 or 75) is the code of the command. torchrun and
accelerate would replace it by their own (docs/adr/0002).
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from distributed_ft.artifacts import RunDirectory, resume_command, write_atomic
from distributed_ft.config.load import LoadedRun, differences, load_resolved, resolved_json, with_evaluation
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import EXIT_FAULT, EXIT_STOPPED, EXIT_USER, CheckpointError, ConfigError
from launcher.plan import LaunchPlan, Process, local_plan, torchrun_command

if TYPE_CHECKING:
    from distributed_ft.data.store import PreparedData

GRACE_SECONDS = 30.0  # for the other ranks to end after one has failed
SAME_REQUEST_SECONDS = 1.0  # signals that come closer together are one request, sent to many processes or by many
# SIGHUP: the terminal was closed; SIGUSR1: what batch systems send before the time is over
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_KILLED_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def train(loaded: LoadedRun, nproc: int, prepare_only: bool = False) -> int:
    """Train a run.yaml: start it, or go on where its run directory stands. Returns the exit code.

    Raises:
        ConfigError, DataError: something in the run.yaml or its data is wrong; no run directory is left behind.
        CheckpointError: the run directory cannot be continued.
    """
    config = loaded.config
    run = RunDirectory(Path(config.runs_dir) / config.name)
    _refuse_other_config(run, config)
    data = _check(run, config, nproc, here=not prepare_only)
    with _made(run, config, loaded.text, data) as lock:
        if prepare_only:
            print(f"prepared {run.path}; start it with:\n  {torchrun_command(run.path, nproc)}")
            return 0
        return _launch_training(run, nproc, lock)


def resume(path: Path, nproc: int) -> int:
    """Continue the run in a run directory. Returns the exit code; raises as `train` does."""
    from distributed_ft.train import preflight

    run = RunDirectory(path)
    config = load_resolved(run.config)
    data = _check(run, config, nproc)
    with run.lock() as lock:
        preflight.record_data(run, data)
        return _launch_training(run, nproc, lock)


def evaluate(path: Path, checkpoints: str = "all", overrides: Sequence[str] = ()) -> int:
    """Score the base, the base with examples, and the checkpoints of a run, in a process of its own.

    Overrides of `evaluation.…` stay in the run directory, so that `dft report` judges by the same settings.
    """
    run = RunDirectory(path)
    if not run.config.exists():
        raise CheckpointError(f"{path}: not a run directory (no config.json)")
    if overrides:
        write_atomic(run.config, resolved_json(with_evaluation(run.config, overrides)))
    arguments = (str(path), "--checkpoints", checkpoints)
    process = Process((sys.executable, "-m", "distributed_ft.evaluation", *arguments), {})
    return run_plan(LaunchPlan((process,)), run, f"dft eval {path}")


def check_tasks(config: RunConfig) -> None:
    """Read what the run will be judged by, so that a fault in it is found before training and not after.

    Raises ConfigError or DataError, naming key or file and line.
    """
    from distributed_ft.evaluation.tasks import build_tasks

    if config.evaluation.tasks or config.evaluation.general:
        build_tasks(config.evaluation)


def _refuse_other_config(run: RunDirectory, config: RunConfig) -> None:
    if not run.config.exists():
        if run.checkpoints.exists():
            raise CheckpointError(f"{run.path}: has checkpoints but no config.json; restore it, or choose another name")
        return
    different = differences(load_resolved(run.config), config)
    if different:
        raise ConfigError(
            f"{run.path}: holds a run of another config; choose another name, or delete that directory:\n  "
            + "\n  ".join(different)
        )


def _check(run: RunDirectory, config: RunConfig, nproc: int, here: bool = True) -> "PreparedData":
    """Check everything that can be known before ranks exist, and tokenise the data; nothing is written into the run
    directory. `here`: the ranks will run on this machine, so it must have what they need.
    """
    from distributed_ft.train import preflight

    run.newest_complete()  # damaged checkpoints are refused here, before anything is loaded
    check_tasks(config)
    return preflight.check(config, nproc, fresh=not run.checkpoints.exists(), here=here)


@contextmanager
def _made(run: RunDirectory, config: RunConfig, text: str, data: "PreparedData") -> Iterator[IO[str]]:
    """The run directory, locked, with its config and data in it; a new one goes again if it cannot be completed."""
    from distributed_ft.train import preflight

    fresh = not run.path.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    with run.lock() as lock:
        try:
            _refuse_other_config(run, config)  # now that no other start can write one
            preflight.record_data(run, data)
            write_atomic(run.run_yaml, text)
            write_atomic(run.config, resolved_json(config))
        except OSError:
            if fresh:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        yield lock


def _launch_training(run: RunDirectory, nproc: int, lock: IO[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="dft-") as folder:
        plan = local_plan("distributed_ft.train", (str(run.path),), nproc, Path(folder) / "rendezvous")
        return run_plan(plan, run, resume_command(run.path, nproc), lock)


def run_plan(plan: LaunchPlan, run: RunDirectory, again: str, lock: IO[str] | None = None) -> int:
    """Start the processes of a plan, pass requests to stop on to them, wait, and give the code of the first to fail.

    Rank 0 writes to this terminal, the others to `logs/rank-N.out`. When one fails the others are ended within
    GRACE_SECONDS; when this process dies they are ended by the kernel. `again` is the command that goes on from there.
    """
    run.logs.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []  # signals, in the order they came
    last = float("-inf")

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SAME_REQUEST_SECONDS:
            return
        last = now
        asked.append(number)
        for child in children:
            if child.poll() is None:  # who asks twice does not want to wait, and a rank in a collective is deaf
                child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in _STOP_SIGNALS if not (number == signal.SIGHUP and under_nohup)]
    former = {number: signal.signal(number, pass_on) for number in heard}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # a request waits until all can hear it
        try:
            for rank, process in enumerate(plan.processes):
                children.append(_start(process, run, rank, lock))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        return _outcome(_wait(children), run, again, asked)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for number, handler in former.items():
            signal.signal(number, handler)


def _start(process: Process, run: RunDirectory, rank: int, lock: IO[str] | None) -> subprocess.Popen[bytes]:
    output = None if rank == 0 else (run.logs / f"rank-{rank}.out").open("ab")
    try:
        return subprocess.Popen(
            process.argv,
            env={**os.environ, **process.env, **({} if lock is None else {"DFT_LOCK_FD": str(lock.fileno())})},
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock.fileno(),) if lock is not None else (),
            preexec_fn=_at_birth,
        )
    finally:
        if output is not None:
            output.close()


def _at_birth() -> None:
    """In the child, before its program: die with the parent, and hear requests to stop."""
    ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _wait(children: list[subprocess.Popen[bytes]]) -> list[tuple[int, int]]:
    """Wait until all have ended. Returns rank and exit code of those that failed first; empty: none failed."""
    deadline = None
    while True:
        codes = [child.poll() for child in children]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            first = failed
        if None not in codes:
            return _with_the_code_of(first[0], children) if failed else []
        if deadline is not None and (time.monotonic() > deadline or first[0][1] not in (EXIT_STOPPED, EXIT_USER)):
            time.sleep(0.5)  # the others may be writing their last words
            for child in children:
                if child.poll() is None:
                    child.kill()
            for child in children:
                child.wait()
            return _with_the_code_of(first[0], children)
        time.sleep(0.05)


def _with_the_code_of(first: tuple[int, int], children: list[subprocess.Popen[bytes]]) -> list[tuple[int, int]]:
    """The ranks that ended as the first to fail did. An error that all ranks share is then rank 0's, who tells it."""
    return [(rank, first[1]) for rank, child in enumerate(children) if child.returncode == first[1]]


def _outcome(failed: list[tuple[int, int]], run: RunDirectory, again: str, asked: list[int]) -> int:
    """The exit code of the command, and a message where no rank has given one."""
    if not failed:
        return 0
    rank, code = failed[0]
    if code < 0:
        if len(asked) > 1:
            what, code = "ended at once, as it was asked twice", 128 + asked[-1]
        elif asked and -code == signal.SIGTERM:
            what, code = "stopped on request while it was starting", EXIT_STOPPED
        else:
            what, code = f"rank {rank} was ended by {signal.Signals(-code).name}", EXIT_FAULT
        print(f"dft: {what}; continue with: {again}", file=sys.stderr)
    elif code != EXIT_STOPPED and rank > 0:
        print(f"dft: rank {rank} failed; see {run.logs / f'rank-{rank}.log'}", file=sys.stderr)
    return code
