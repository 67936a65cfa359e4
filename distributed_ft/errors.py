"""What can go wrong, by who has to act.

`ConfigError`, `DataError` and `CheckpointError` are for the user: one clear message, no traceback, exit code 2.
Anything else that escapes is our fault or the machine's: traceback, exit code 1.
"""

import errno
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
GATE_CODES = {"ship": EXIT_DONE, "do_not_ship": 3, "not_enough_evidence": 4}  # of `dft report --gate`, by verdict
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request, resumable, start me again
EXIT_LOST = 76  # of a rank whose peers are gone: the failure is another's; never the code of a command
EXIT_BAD_NODE = 78  # of the pre-flight: a node of the allocation is not fit for training

_DISK_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another runs_dir",
    errno.EDQUOT: "free some of your quota, or choose another runs_dir",
    errno.EROFS: "choose a runs_dir that can be written to",
    errno.EACCES: "get the permission, or choose another place",
    errno.EPERM: "get the permission, or choose another place",
    errno.ENOTDIR: "part of the path is a file; choose another place",
    errno.EEXIST: "a file is in the way; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class FtError(Exception):
    """Base of the errors whose message is for the user: it names the file, line or key, the value, the remedy."""


class ConfigError(FtError, ValueError):
    """`run.yaml`, an override or a command-line argument is wrong."""


class DataError(FtError, ValueError):
    """A data file is wrong; the message names file and line."""


class CheckpointError(FtError, RuntimeError):
    """A checkpoint or run directory cannot be used as it is."""


class TrainingError(FtError, RuntimeError):
    """Training cannot go on (for example: the loss is not finite, k steps in a row); the message is the diagnosis."""


class EvaluationError(FtError, RuntimeError):
    """A score cannot be computed, and no number is better than a wrong one."""


class EngineError(FtError, RuntimeError):
    """What answers is gone (a process that died, a server that is not there): to ask for more is in vain."""


class Stopped(FtError):
    """Stopped on request with a resumable checkpoint (exit code 75)."""


def brief(error: Exception) -> str:
    """The first lines of what a library says, or the kind of its error when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__


def some(names: Iterable[object]) -> str:
    """The first three of many names (of a pair, its first), for a message."""
    shown = [str(name[0] if isinstance(name, tuple) else name) for name in sorted(names, key=str)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def disk_problem(error: OSError) -> str | None:
    """The message for an OSError that the user can do something about (a full disk, …); None for any other."""
    remedy = _DISK_REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{(error.strerror or 'the disk refused it').lower()}; {remedy}"
