"""Starts the processes of a plan as our own children, passes requests to stop on to them, and reports how they ended.

The ranks are each in one session of their own: Ctrl-C reaches this process alone, which passes it on as a request to
stop, and the code with which the ranks end (0, 1, 2 or 75) is the code of the command (docs/adr/0002).
"""

import functools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import IO

from distributed_ft import beats
from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import EXIT_LOST, EXIT_STOPPED, EXIT_USER, Stopped
from distributed_ft.roll import end_with_parent, same_request_seconds
from launcher.plan import LaunchPlan, Process
from launcher.stall import Stall, Vigil
from launcher.watch import culprit, ending

GRACE_SECONDS = 30.0  # for the other ranks to end after one has stopped or refused
CULPRIT_SECONDS = 5.0  # after one that lost its peers, for the one that failed to be known
LAST_WORDS_SECONDS = 0.5  # for what the others may be writing
# SIGHUP: the terminal was closed; SIGUSR1: what batch systems send before the time is over
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_plan(
    plan: LaunchPlan,
    run: RunDirectory,
    again: str,
    lock: IO[str] | None = None,
    quiet: bool = False,
    requests: list[int] | None = None,
) -> int:
    """Start the processes of a plan, pass requests to stop on to them, wait, and give the code of the first to fail.

    Rank 0 writes to this terminal unless it shall be `quiet`, the others to `logs/rank-N.out`. When one fails the
    others are ended within GRACE_SECONDS; when this process dies they are ended by the kernel. `again` is the command
    that goes on from there; `requests` the list of one who heeds signals already.
    """
    if quiet or len(plan.processes) > 1:
        run.logs.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []
    hearing = heeding() if requests is None else nullcontext(requests)
    with tempfile.TemporaryDirectory(prefix="dft-") as heard, hearing as asked:
        try:
            for rank, process in enumerate(plan.processes):
                children.append(start(process, run, rank, lock, quiet, {beats.VARIABLE: heard}))
            ended, stall = _wait(children, Vigil(Path(heard), run), asked)
            return ending(ended, Path(heard), run, again, asked, stall).tell()
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


@contextmanager
def heeding(act: Callable[[list[int]], None] = lambda _: None) -> Iterator[list[int]]:
    """Take note of each request to stop, in the list of signals that is yielded, and call `act` with it.

    A request comes at any moment, also when half of the ranks are started, and no mask holds it back: the kernel gives
    it to any thread that a library has started, and Python runs the handler all the same. So what is to be done is
    better done by whoever looks at the list.
    """
    asked: list[int] = []  # signals, in the order they came
    last = float("-inf")

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < same_request_seconds():
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


class _Cut(BaseException):
    """A request to stop; no Exception, for there are libraries that go on after any of those."""


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """Raise Stopped at a request to stop, KeyboardInterrupt at Ctrl-C: for work of this process that may be cut
    anywhere. At the latest when it is done, for what is raised in a destructor is lost."""
    try:
        with heeding(_cut) as asked:
            yield
        if asked:
            _cut(asked)
    except _Cut:
        raise Stopped(message) from None


def _cut(asked: list[int]) -> None:
    raise KeyboardInterrupt if asked[-1] == signal.SIGINT else _Cut


def start(
    process: Process,
    run: RunDirectory,
    rank: int,
    lock: IO[str] | None,
    quiet: bool = False,
    add: Mapping[str, str] = MappingProxyType({}),
    deaf: bool = False,
) -> subprocess.Popen[bytes]:
    """One process of a plan, with variables to `add`, which dies with this one; it holds the lock too. `deaf`: it
    ignores requests to stop until it says otherwise."""
    output = None if rank == 0 and not quiet else (run.logs / f"rank-{rank}.out").open("ab")
    try:
        return subprocess.Popen(
            process.argv,
            env={**os.environ, **process.env, **add, **({} if lock is None else {"DFT_LOCK_FD": str(lock.fileno())})},
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock.fileno(),) if lock is not None else (),
            preexec_fn=functools.partial(_at_birth, deaf),
        )
    finally:
        if output is not None:
            output.close()


def _at_birth(deaf: bool) -> None:
    """In the child, before its program: die with the parent, and perhaps be deaf to requests to stop."""
    end_with_parent()
    for number in _STOP_SIGNALS if deaf else ():
        signal.signal(number, signal.SIG_IGN)


def _wait(
    children: list[subprocess.Popen[bytes]], vigil: Vigil, asked: list[int]
) -> tuple[dict[int, int], Stall | None]:
    """Pass on what is `asked`, until all have ended, until those who are left have had their time after one failed, or
    until one stalls. Returns rank -> exit code, of those that ended by themselves, in that order, and who stalls."""
    ended: dict[int, int] = {}
    deadline, passed_on = None, 0
    while len(ended) < len(children):
        if len(asked) > passed_on:
            passed_on = len(asked)
            _ask(children, again=passed_on > 1)
        for rank, child in enumerate(children):
            if rank not in ended and child.poll() is not None:
                ended[rank] = child.returncode
        first = culprit(ended)
        if first is not None:
            deadline = min(deadline or float("inf"), time.monotonic() + patience(first[1]))
            if time.monotonic() > deadline:
                break
        elif (stall := vigil.look()) is not None:
            return ended, stall
        time.sleep(0.05)
    return ended, None


def _ask(children: list[subprocess.Popen[bytes]], again: bool) -> None:
    """Ask those that live to stop. Whoever asks again does not want to wait, and a rank in a collective is deaf."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def patience(code: int) -> float:
    """Seconds that the other ranks have, after the first to fail ended with this code: to save what they can; to find
    out whose failure it is; or for last words."""
    if code in (EXIT_STOPPED, EXIT_USER):
        return GRACE_SECONDS
    return CULPRIT_SECONDS if code == EXIT_LOST else LAST_WORDS_SECONDS
