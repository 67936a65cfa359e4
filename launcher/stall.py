"""Notices that the ranks of a node stand still, and finds the one that the others wait for.

Ranks train in step, so one that stands still soon holds up all. It is told from the others by its state in the kernel
(a signal stopped it), else by how many collectives it entered: torch's flight recorder counts them, for gloo and NCCL.
Who is found is shown with the stack of its main thread, which it writes to its log when it gets a SIGQUIT.
"""

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distributed_ft import beats
from distributed_ft.artifacts import RunDirectory
from distributed_ft.beats import Beat

LOOK_SECONDS = 1.0  # between two looks at the beats
ANSWER_SECONDS = 5.0  # for the ranks to say where they are; one that holds the interpreter's lock does not
FRAMES = 6  # of a stack that are shown whosever they are
_QUIET = ("loading", "saving")  # phases that take as long as they take, without a beat


@dataclass(frozen=True)
class Stall:
    """A rank that holds the others up.

    how: what is known of it, as a predicate; seconds: since any rank of this node moved; stack: of its main thread, the
    innermost frame first, empty where it could not be had; alone: whether it is told from the others of this node.
    """

    rank: int
    how: str
    seconds: float
    stack: str
    alone: bool


class Vigil:
    """Keeps an eye on the beats of a node's ranks."""

    def __init__(self, heard: Path, run: RunDirectory) -> None:
        self._heard, self._run, self._limit = heard, run, beats.stall_seconds()
        self._last: dict[int, Beat] = {}
        self._looked = self._moved = time.monotonic()

    def look(self) -> Stall | None:
        """The rank to blame, when none has moved for so long; takes some seconds then, and microseconds before."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        slept = now - self._looked > 10 * LOOK_SECONDS  # with all of the job, which the batch system suspended
        beating, self._looked = beats.read(self._heard), now
        if slept or beating != self._last:
            self._last, self._moved = beating, now
        if now - self._moved < self._limit or not beating:
            return None
        stopped = sorted(rank for rank, beat in beating.items() if is_stopped(beat.pid))
        phases = {beat.phase for beat in beating.values()}
        if not stopped and (not phases & {"training", "validating"} or phases & {*_QUIET}):
            return None
        return self._blame(stopped)

    def _blame(self, stopped: list[int]) -> Stall:
        said = self._ask(stopped or self._last, stopped)
        if stopped:
            rank, how, alone = stopped[0], "was stopped by a signal", True
        else:
            entered = beats.collectives(self._heard)  # one that does not answer is busy with something else
            place = {rank: (entered.get(rank, -1), beat.step, rank) for rank, beat in self._last.items()}
            rank, alone = (
                min(place, key=place.__getitem__),
                len(place) == 1 or len({where[:2] for where in place.values()}) > 1,
            )
            how = "stands still" if alone else "waits in the same collective as all ranks here"
        return Stall(rank, how, self._limit, "\n".join(main_thread(said[rank])), alone)

    def _ask(self, ranks: Iterable[int], stopped: list[int]) -> dict[int, str]:
        """Have ranks write their stacks and count their collectives; what each wrote. One that a signal stopped goes on
        then, but its handler comes first: the stack is where it stood."""
        logs = {rank: self._run.logs / f"rank-{rank}.log" for rank in ranks}
        begin = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
        for rank in logs:
            for number in (signal.SIGQUIT, *((signal.SIGCONT,) if rank in stopped else ())):
                _send(self._last[rank].pid, number)
        deadline = time.monotonic() + ANSWER_SECONDS
        said: dict[int, str] = {}
        while time.monotonic() < deadline:
            time.sleep(0.25)
            former, said = said, {rank: _from(log, begin[rank]) for rank, log in logs.items()}
            whole = said == former and all(main_thread(text) for text in said.values())
            if whole and (stopped or beats.collectives(self._heard).keys() >= logs.keys()):
                break
        return said


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP) holds a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main_thread(dump: str) -> list[str]:
    """The innermost frames of a process's first thread, which faulthandler writes last, and beyond them ours."""
    block = dump.rpartition("(most recent call first):\n")[2]
    frames = [line for line in block.splitlines() if line.startswith("  File ")]
    return [frame for depth, frame in enumerate(frames) if depth < FRAMES or "/distributed_ft/" in frame]


def _from(log: Path, begin: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
