"""How a training ended, told from its ranks' exit codes, their last beats and the notes that they left.

A rank that dies takes its peers' connections with it, so most of what they say then is a consequence. The one that is
named is the first that failed by itself.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from distributed_ft import beats
from distributed_ft.artifacts import RunDirectory, host_name
from distributed_ft.beats import Beat
from distributed_ft.errors import EXIT_DONE, EXIT_FAULT, EXIT_LOST, EXIT_STOPPED, EXIT_USER
from launcher.stall import Stall

LOST = "lost its peers"  # the cause of a failure that is another rank's
VANISHED = -1000  # a rank that is gone and nobody knows how
_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Ending:
    """How the ranks of this node ended.

    code: of the command; message: one line for the user (and a stack, where one stalled), empty where rank 0 has said
    it; cause: the same words for the same failure ("SIGKILL", "stalled", "lost its peers", "ValueError: …"), empty
    where nothing failed.
    """

    code: int
    message: str = ""
    rank: int | None = None
    host: str = ""
    step: int | None = None  # completed steps of that rank; None before it said so
    cause: str = ""

    def tell(self) -> int:
        """Print the message, if any; returns the code."""
        if self.message:
            print(f"dft: {self.message}", file=sys.stderr, flush=True)
        return self.code


def culprit(ended: dict[int, int]) -> tuple[int, int] | None:
    """Rank and exit code of the first that failed by itself, else of the first that lost its peers; None: none failed.

    `ended`: rank -> exit code (negative: a signal), in the order of ending."""
    failed = [(rank, code) for rank, code in ended.items() if code]
    return next((end for end in failed if end[1] != EXIT_LOST), failed[0] if failed else None)


def ending(
    ended: dict[int, int], heard: Path, run: RunDirectory, again: str, asked: list[int], stall: Stall | None = None
) -> Ending:
    """What became of a training, from how its ranks ended: see `culprit`.

    Args:
        ended: rank -> exit code, in the order of ending, as far as they ended by themselves.
        heard: the directory of the ranks' beats and notes.
        again: the command that continues the run.
        asked: the signals by which the launcher was asked to stop.
        stall: the rank for whose sake the others are ended.
    """
    first = culprit(ended)
    if len(asked) > 1:
        return Ending(128 + asked[-1], f"ended at once, as it was asked twice; continue with: {again}")
    if stall is not None:
        return _stalled(stall, beats.read(heard).get(stall.rank), again)
    if first is None:
        return Ending(EXIT_DONE)
    rank, code = first
    last = beats.read(heard).get(rank)
    step, host, note = last.step if last else None, host_name(), beats.notes(heard).get(rank, "")
    if code == EXIT_STOPPED or (asked and -code in _REQUESTS):
        said = ended.get(0) == EXIT_STOPPED or (code == EXIT_STOPPED and 0 not in ended)
        message = "" if said else f"stopped on request while it was starting; continue with: {again}"
        return Ending(EXIT_STOPPED, message, rank, host, step)
    if code < 0:
        known = -code in {*signal.Signals}
        cause = signal.Signals(-code).name if known else "ended without a word"
        how = f"was ended by {cause}" if known else cause
        return Ending(
            EXIT_FAULT, f"{_named(rank, host)} {how}{_after(step)}; continue with: {again}", rank, host, step, cause
        )
    log = run.logs / f"rank-{rank}.log"
    if code == EXIT_LOST:
        cause = LOST
        message = f"{_named(rank, host)} {cause}{_after(step)}; see {log}; continue with: {again}"
        return Ending(EXIT_FAULT, message, rank, host, step, cause)
    told_by_all = ended.get(0) == code  # an error that all ranks share is rank 0's, who tells it
    message = "" if rank == 0 or told_by_all else f"rank {rank} failed; see {log}"
    return Ending(code if code == EXIT_USER else EXIT_FAULT, message, rank, host, step, note or f"exit code {code}")


def _stalled(stall: Stall, last: Beat | None, again: str) -> Ending:
    step, host = last.step if last else None, host_name()
    line = f"{_named(stall.rank, host)} {stall.how}{_after(step)}, and no rank here moved for {stall.seconds:.0f} s"
    stack = f"\nit stood at (innermost call first):\n{stall.stack}" if stall.stack else ""
    cause = "stalled" if stall.alone else LOST  # in a job of several nodes another one knows more
    return Ending(EXIT_FAULT, f"{line}; continue with: {again}{stack}", stall.rank, host, step, cause)


def exit_code_of(pid: int) -> int | None:
    """How a process that is not our child ended (negative: by that signal, VANISHED: nobody knows); None: it lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return VANISHED
    if fields[0] not in "ZX":  # what its parent has not waited for yet still says how it ended
        return None
    return os.waitstatus_to_exitcode(int(fields[-1])) or VANISHED


def _named(rank: int, host: str) -> str:
    return f"rank {rank} on {host}"


def _after(step: int | None) -> str:
    return "" if step is None else f" after step {step}" if step else " before its first step"
