"""A list in which ranks sign in and out, for a launcher that hides how they end.

torchrun and `accelerate launch` give a rank's exit code as 1, with a traceback, and kill all ranks 30 s after a signal.
`dft train --launcher torchrun` therefore names a file in DFT_ROLL: from it the command learns whom to ask to stop, and
with which code each rank ended. Without that variable, under any other launcher, nothing here does anything.
"""

import ctypes
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from distributed_ft.errors import EXIT_DONE, EXIT_LOST, EXIT_STOPPED, EXIT_USER

VARIABLE = "DFT_ROLL"
_SAME_REQUEST_VARIABLE = "DFT_SAME_REQUEST_SECONDS"
_KILLED_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Roll:
    """Who is there, and how those who left ended: rank -> process id or exit code, in the order of coming and going."""

    present: dict[int, int]
    ended: dict[int, int]


def same_request_seconds() -> float:
    """Signals that come closer together are one request, sent to many processes or by many; a batch script raises it
    where a signal takes longer through a launcher than directly."""
    return float(os.environ.get(_SAME_REQUEST_VARIABLE, "1.0"))


def sign_in(rank: int) -> None:
    """Say that this rank can be asked to stop. From now on it ends with its launcher."""
    if VARIABLE in os.environ:
        end_with_parent()
        _write({"rank": rank, "pid": os.getpid()})


def sign_out(rank: int, code: int) -> int:
    """Say how this rank ends. Returns the code to end with: the launcher above need only know of faults, on which it
    ends the others; what is meant for the user would be a fault in its eyes."""
    if VARIABLE not in os.environ:
        return code
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))  # nothing is left to stop
    _write({"rank": rank, "code": code})
    return EXIT_DONE if code in (EXIT_USER, EXIT_STOPPED, EXIT_LOST) else code


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)


def read(path: Path) -> Roll:
    """The list as it is now."""
    present: dict[int, int] = {}
    ended: dict[int, int] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "pid" in entry:
            present[entry["rank"]] = entry["pid"]
        else:
            present.pop(entry["rank"], None)
            ended[entry["rank"]] = entry["code"]
    return Roll(present, ended)


def _write(entry: dict[str, int]) -> None:
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{json.dumps(entry)}\n".encode())  # one write: lines of several ranks do not mix
    finally:
        os.close(descriptor)
