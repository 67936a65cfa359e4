"""Starts the processes of a plan as our own children, passes requests to stop on to them, and reports how they ended.

The ranks are each in one session of their own: Ctrl-C reaches this process alone, which passes it on as a request to
stop, and the code with which the ranks end (0, 1, 2 or 75) is the code of the command (docs/adr/0002).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import EXIT_FAULT, EXIT_STOPPED, EXIT_USER
from distributed_ft.roll import end_with_parent
from launcher.plan import LaunchPlan, Process

GRACE_SECONDS = 30.0  # for the other ranks to end after one has failed
SAME_REQUEST_SECONDS = 1.0  # signals that come closer together are one request, sent to many processes or by many
# SIGHUP: the terminal was closed; SIGUSR1: what batch systems send before the time is over
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_plan(plan: LaunchPlan, run: RunDirectory, again: str, lock: IO[str] | None = None, quiet: bool = False) -> int:
    """Start the processes of a plan, pass requests to stop on to them, wait, and give the code of the first to fail.

    Rank 0 writes to this terminal unless it shall be `quiet`, the others to `logs/rank-N.out`. When one fails the
    others are ended within GRACE_SECONDS; when this process dies they are ended by the kernel. `again` is the command
    that goes on from there.
    """
    run.logs.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(asked: list[int]) -> None:
        for child in children:
            if child.poll() is None:  # who asks twice does not want to wait, and a rank in a collective is deaf
                child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    with heeding(pass_on) as asked:
        try:
            with held_back():
                for rank, process in enumerate(plan.processes):
                    children.append(start(process, run, rank, lock, quiet))
            return outcome(_wait(children), run, again, asked)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


@contextmanager
def heeding(act: Callable[[list[int]], None]) -> Iterator[list[int]]:
    """Call `act` at each request to stop, with the signals of all so far; yields that list."""
    asked: list[int] = []  # signals, in the order they came
    last = float("-inf")

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SAME_REQUEST_SECONDS:
            return
        last = now
        asked.append(number)
        act(asked)

    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in _STOP_SIGNALS if not (number == signal.SIGHUP and under_nohup)]
    former = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """While processes are started, a request waits until all can hear it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def start(
    process: Process, run: RunDirectory, rank: int, lock: IO[str] | None, quiet: bool = False
) -> subprocess.Popen[bytes]:
    """One process of a plan, which dies with this one; it holds the lock too."""
    output = None if rank == 0 and not quiet else (run.logs / f"rank-{rank}.out").open("ab")
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
    end_with_parent()
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


def outcome(failed: list[tuple[int, int]], run: RunDirectory, again: str, asked: list[int]) -> int:
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
