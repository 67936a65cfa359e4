"""What this project asks of Slurm, by its commands: is it here, what can it offer, submit, look, cancel, requeue.

`scontrol` answers on every cluster; `sacct` only where accounting is kept, so it is not asked.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_ft import jobs
from distributed_ft.errors import ConfigError

_PATIENCE = 60.0  # seconds for the controller to answer


@dataclass(frozen=True)
class Partition:
    """What a partition offers. max_seconds: longest job, None without a limit; gpus: of its best node."""

    name: str
    default: bool
    nodes: int
    max_seconds: int | None
    gpus: int
    cpus: int


def here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def job(number: str) -> dict[str, str]:
    """What Slurm says of a job (`scontrol show job`), by key; empty when it knows it no more."""
    done = _ask("scontrol", "-o", "show", "job", number)
    lines = done.stdout.splitlines()
    return dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(.*?)(?=\s[A-Za-z/:]+=|$)", lines[0])) if lines else {}


def state(number: str) -> str:
    """PENDING, RUNNING, COMPLETED, …; empty when Slurm knows the job no more. Of an array: the liveliest task's."""
    states = re.findall(r"JobState=(\S+)", _ask("scontrol", "-o", "show", "job", number).stdout)
    return next((state for state in states if state not in jobs.OVER), states[0] if states else "")


def alive(number: str) -> bool:
    """Whether a job is queued, running, or not quite gone. A Slurm that does not answer has not said that it is."""
    return jobs.is_live(number) is not False


def submit(script: Path, options: Sequence[str] = ()) -> str:
    """Submit a batch script; the job's number. Raises ConfigError with what Slurm says."""
    done = _ask("sbatch", "--parsable", *options, str(script))
    if done.returncode:
        raise ConfigError(f"{script}: Slurm refused it: {_said(done)}")
    return done.stdout.strip().splitlines()[-1].split(";")[0]


def refusal(script: Path) -> str | None:
    """Why Slurm would refuse the script now; None if it would not."""
    done = _ask("sbatch", "--test-only", str(script))
    return _said(done) if done.returncode else None


def requeue(number: str) -> str | None:
    """Put a running job back into the queue, which ends it. None, or why Slurm would not."""
    done = _ask("scontrol", "requeue", number)
    return _said(done) if done.returncode else None


def exclude(number: str, nodes: str) -> str | None:
    """Keep a job that does not run (a list of nodes, `a,b`) off them. None, or why Slurm would not."""
    done = _ask("scontrol", "update", f"JobId={number}", f"ExcNodeList={nodes}")
    return _said(done) if done.returncode else None


def cancel(number: str) -> str | None:
    """None, or why Slurm would not."""
    done = _ask("scancel", number)
    return _said(done) if done.returncode else None


def partitions() -> list[Partition]:
    """What there is. Raises ConfigError when the controller does not answer."""
    done = _ask("sinfo", "-h", "-o", "%P|%l|%D|%G|%c")
    if done.returncode:
        raise ConfigError(f"Slurm does not answer: {_said(done)}")
    found: dict[str, Partition] = {}
    for line in done.stdout.splitlines():  # a line for each kind of node
        name, limit, nodes, gres, cpus = line.split("|")
        plain = name.removesuffix("*")
        before = found.get(plain, Partition(plain, name.endswith("*"), 0, seconds_of(limit), 0, 0))
        most = max(before.gpus, _gpus(gres)), max(before.cpus, int(cpus.rstrip("+")))
        found[plain] = Partition(plain, before.default, before.nodes + int(nodes), before.max_seconds, *most)
    return list(found.values())


def seconds_of(limit: str) -> int | None:
    """`2-12:00:00`, `4:00:00`, `30:00` or `30` (minutes) in seconds, as Slurm reads it; None for no limit.

    Raises ConfigError for anything else.
    """
    if limit.lower() in ("infinite", "unlimited", "n/a"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        raise ConfigError(f"{limit!r} is no time; write minutes, H:MM:SS or D-H:MM:SS")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:  # D-H[:MM[:SS]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # MM[:SS]
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _gpus(gres: str) -> int:
    """`gpu:a100:4(S:0-1),gpu:2` -> 6."""
    return sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres))


def _ask(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run one of Slurm's commands. What a job knows of itself is nothing that a new one should inherit."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=environment)
    except FileNotFoundError:
        raise ConfigError(
            f"Slurm is not on this machine (no {command[0]}); log in where jobs are submitted, or train here with "
            "`dft train run.yaml --nproc N`"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} did not answer within {_PATIENCE:.0f} s")


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command said, in one line; of a chain of causes the last, which names the matter."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    fatal = [line for line in lines if "fatal: " in line]
    said = " ".join(re.sub(r"^\w+: (error|fatal): ", "", line) for line in (fatal[-1:] or lines))
    return said or f"exit code {done.returncode}"
