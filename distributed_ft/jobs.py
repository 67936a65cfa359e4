"""What Slurm still knows of a job; for whoever waits for one, and must not take a silent controller for its end."""

import os
import re
import subprocess

from distributed_ft.errors import ConfigError

OVER = {  # states of a job that has ended
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
_PATIENCE = 60.0  # seconds for the controller to answer


def is_live(number: str) -> bool | None:
    """Whether a job (or a task of an array) is queued, running or ending; None when Slurm does not answer.

    Raises ConfigError where there is no Slurm.
    """
    command = ["squeue", "-h", "-j", number, "-t", "all", "-o", "%T"]  # without `all`, some states are left out
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=environment)
    except FileNotFoundError:
        raise ConfigError(f"job {number}: there is no Slurm on this machine (no squeue)") from None
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:  # a job that ended long ago is an invalid id
        return False if re.search("invalid job id", done.stderr, re.IGNORECASE) else None
    return any(state not in OVER for state in done.stdout.split())
