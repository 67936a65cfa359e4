"""A training under torchrun or `accelerate launch`, with the exit codes and the way of stopping of `dft train`.

Such a launcher turns every exit code into 1, and kills its ranks 30 s after a signal, in the middle of a long save. So
a request to stop goes to the ranks themselves, and they say how they ended in a list (`distributed_ft.roll`).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from distributed_ft import roll
from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import EXIT_FAULT
from launcher.plan import LaunchPlan
from launcher.processes import GRACE_SECONDS, heeding, held_back, outcome, start


def run_launcher(plan: LaunchPlan, run: RunDirectory, again: str, lock: IO[str] | None = None) -> int:
    """Start the launcher of a plan, wait, and give the code of the first rank to fail. `again` is the command that goes
    on from there."""
    (process,), signed = plan.processes, plan.roll
    assert signed is not None
    signed.touch()
    with heeding(lambda _: None) as asked:
        with held_back():
            child = start(process, run, 0, lock)
        try:
            _wait(child, signed, asked)
        finally:
            _kill(child, signed)
    ended = roll.read(signed).ended
    failed = [(rank, code) for rank, code in ended.items() if code]
    if failed:
        first = failed[0][1]  # an error that all ranks share is rank 0's, who tells it
        return outcome(sorted(end for end in failed if end[1] == first), run, again, asked)
    if len(asked) > 1:
        return outcome([(0, -signal.SIGKILL)], run, again, asked)
    if child.returncode == 0 and len(ended) == plan.num_ranks:
        return 0
    missing = [str(rank) for rank in range(plan.num_ranks) if rank not in ended]
    what = f"{process.argv[2]} ended with code {child.returncode}; rank {', '.join(missing) or '?'} did not say how it"
    print(f"dft: {what} ended; see {run.logs}; continue with: {again}", file=sys.stderr)
    return EXIT_FAULT


def _wait(child: subprocess.Popen[bytes], signed: Path, asked: list[int]) -> None:
    """Until the launcher has ended; until those who are left have had their time, after a rank failed; or until
    somebody asked twice."""
    told: set[int] = set()
    deadline = None
    while child.poll() is None and len(asked) < 2:
        now = roll.read(signed)
        if asked:
            for pid in {*now.present.values()} - told:  # a rank that is only starting signs in later
                _signal(pid, signal.SIGTERM)
                told.add(pid)
        if deadline is None and any(now.ended.values()):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _kill(child: subprocess.Popen[bytes], signed: Path) -> None:
    """The ranks first, which are not our children; those that have not signed in die at the latest as they do."""
    if child.poll() is None:
        for pid in roll.read(signed).present.values():
            _signal(pid, signal.SIGKILL)
        child.kill()
    child.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
