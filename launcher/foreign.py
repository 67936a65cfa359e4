"""A training under torchrun or `accelerate launch`, with the exit codes and the way of stopping of `dft train`.

Such a launcher turns every exit code into 1, and kills its ranks 30 s after a signal, in the middle of a long save. So
a request to stop goes to the ranks themselves, and they say how they ended in a list (`distributed_ft.roll`); one that
is gone and has not said so was killed. The launcher itself ignores what a batch system sends to every process of a job.
"""

import os
import signal
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from distributed_ft import beats, roll
from distributed_ft.artifacts import RunDirectory, host_name
from distributed_ft.errors import EXIT_FAULT
from launcher.plan import LaunchPlan
from launcher.processes import heeding, patience, start
from launcher.stall import Stall, Vigil
from launcher.watch import Ending, culprit, ending, exit_code_of


def run_launcher(
    plan: LaunchPlan, run: RunDirectory, again: str, lock: IO[str] | None = None, requests: list[int] | None = None
) -> int:
    """Start the launcher of a plan, wait, say how it ended, and give the code of the first rank to fail. `again` is the
    command that goes on from there; `requests` the list of one who heeds signals already."""
    return launched(plan, run, again, lock, requests).tell()


def launched(
    plan: LaunchPlan, run: RunDirectory, again: str, lock: IO[str] | None = None, requests: list[int] | None = None
) -> Ending:
    """The same without a word: how the `plan.num_ranks` ranks of this node ended, whichever of the world's they are."""
    (process,), signed = plan.processes, plan.roll
    assert signed is not None
    signed.touch()
    hearing = heeding() if requests is None else nullcontext(requests)
    with tempfile.TemporaryDirectory(prefix="dft-") as heard, hearing as asked:
        child = start(process, run, 0, lock, add={beats.VARIABLE: heard}, deaf=True)
        try:
            ended, stall = _wait(child, signed, plan.num_ranks, asked, Vigil(Path(heard), run))
        finally:
            _kill(child, signed)
        for rank, code in roll.read(signed).ended.items():
            ended.setdefault(rank, code)
        if stall is not None:
            return ending(ended, Path(heard), run, again, asked, stall)
        if (child.returncode == 0 and len(ended) < plan.num_ranks) or (not ended and len(asked) < 2):
            missing = plan.num_ranks - len(ended)
            what = (
                f"{process.argv[2]} ended with code {child.returncode}; {missing} of its {plan.num_ranks} processes did"
            )
            message = f"{what} not say how they ended; see {run.logs}; continue with: {again}"
            return Ending(EXIT_FAULT, message, host=host_name(), cause=f"launcher: exit code {child.returncode}")
        return ending(ended, Path(heard), run, again, asked)


def _wait(
    child: subprocess.Popen[bytes], signed: Path, num_ranks: int, asked: list[int], vigil: Vigil
) -> tuple[dict[int, int], Stall | None]:
    """Until the launcher has ended; until those who are left have had their time, after a rank failed; until one
    stalls; or until somebody asked twice. Returns rank -> exit code, of those that ended so far, in that order, and who
    stalls."""
    told: set[int] = set()
    ended: dict[int, int] = {}
    deadline = None
    while child.poll() is None and len(asked) < 2:
        now = roll.read(signed)
        ended |= {rank: code for rank, code in now.ended.items() if rank not in ended}
        if asked:
            for pid in {*now.present.values()} - told:  # a rank that is only starting signs in later
                _signal(pid, signal.SIGTERM)
                told.add(pid)
        gone = {rank: code for rank, pid in now.present.items() if (code := exit_code_of(pid)) is not None}
        signed_out = roll.read(signed).ended  # since `now`
        ended |= {rank: code for rank, code in gone.items() if rank not in signed_out and rank not in ended}
        first = culprit(ended)
        if first is not None and (first[1] < 0 or len(ended) == num_ranks):
            break  # before the launcher sees it, who would put a traceback in the place of our line
        if first is not None:
            deadline = min(deadline or float("inf"), time.monotonic() + patience(first[1]))
        if deadline is not None and time.monotonic() > deadline:
            break
        if first is None and (stall := vigil.look()) is not None:
            return ended, stall
        time.sleep(0.02)
    return ended, None


def _kill(child: subprocess.Popen[bytes], signed: Path) -> None:
    """The launcher first, which would tell of its ranks' end; they are not our children. Those that have not signed in
    die at the latest as they do."""
    present = roll.read(signed).present
    if child.poll() is None:
        child.kill()
        for pid in present.values():
            _signal(pid, signal.SIGKILL)
    child.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
