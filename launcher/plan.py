"""From a run and a machine to command lines: pure, nothing is started here."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process: its command and what it adds to the environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchPlan:
    """The processes of one machine, by local rank."""

    processes: tuple[Process, ...]


def local_plan(module: str, arguments: tuple[str, ...], num_processes: int, rendezvous: Path) -> LaunchPlan:
    """`python -m module arguments…` as the ranks of one world on this machine.

    The ranks meet through the file `rendezvous` and talk over loopback: no port to choose, none to collide. Its path
    must be plain ASCII: torch reads it as a URL without unquoting it.
    """
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    argv = (sys.executable, "-m", module, *arguments)
    processes = []
    for rank in range(num_processes):
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "DFT_RENDEZVOUS": f"file://{rendezvous.absolute()}",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        processes.append(Process(argv, env))
    return LaunchPlan(tuple(processes))


def torchrun_command(run_dir: Path, num_processes: int) -> str:
    """The same training under torchrun, for people who bring their own launcher."""
    return f"torchrun --standalone --nproc-per-node {num_processes} -m distributed_ft.train {run_dir}"
