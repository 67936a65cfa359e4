"""From a run and a machine to command lines: pure, nothing is started here."""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

from distributed_ft import roll
from distributed_ft.config.schema import (
    DdpStrategy,
    DeepspeedStrategy,
    FsdpStrategy,
    LauncherStrategy,
    RunConfig,
)

Launcher = Literal["dft", "torchrun", "accelerate"]
_TRAIN = "distributed_ft.train"


@dataclass(frozen=True)
class Process:
    """One process: its command and what it adds to the environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchPlan:
    """The processes of one machine, by local rank; or a launcher, which starts `num_ranks` of them itself and, as it
    hides how they end, has them sign the list `roll`."""

    processes: tuple[Process, ...]
    num_ranks: int
    roll: Path | None = None


@dataclass(frozen=True)
class Start:
    """How a training is started: by whom, on how many processes of this machine, for accelerate with which file (None:
    ours)."""

    num_processes: int = 1
    launcher: Launcher = "dft"
    accelerate_file: Path | None = None


@dataclass(frozen=True)
class Place:
    """A node's place among those of a job, and where they meet."""

    node: int
    num_nodes: int
    num_ranks: int | None  # of all nodes; None where the nodes of a job may differ
    host: str
    port: int
    id: str  # of the meeting: no other job or restart has it


def local_plan(module: str, arguments: tuple[str, ...], num_processes: int, rendezvous: Path) -> LaunchPlan:
    """`python -m module arguments…` as the ranks of one world on this machine.

    The ranks meet through the file `rendezvous` and talk over loopback: no port to choose, none to collide. Its path
    must be plain ASCII: torch reads it as a URL without unquoting it.
    """
    argv = (sys.executable, "-m", module, *arguments)
    processes = []
    for rank in range(num_processes):
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "DFT_RENDEZVOUS": f"file://{rendezvous.absolute()}",
            **_on_this_machine(num_processes),
        }
        processes.append(Process(argv, env))
    return LaunchPlan(tuple(processes), num_processes)


def launcher_plan(run_dir: Path, start: Start, again: str, signed: Path, place: Place | None = None) -> LaunchPlan:
    """The training of a run directory under torchrun or accelerate, whose ranks sign the list `signed`; `again` is
    the command that continues it, which they tell the user. With a `place`: this node's part of it."""
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}[start.launcher]
    env = {
        "DFT_AGAIN": again,
        roll.VARIABLE: str(signed),
        **_on_this_machine(start.num_processes),
    }
    processes = place.num_ranks if place else start.num_processes
    if processes is not None:
        env["DFT_WORLD_SIZE"] = str(processes)
    if place is not None and place.num_nodes > 1:
        del env["GLOO_SOCKET_IFNAME"]  # loopback reaches no other node; cluster.yaml may name an interface
    options = _options(run_dir, start, place, ours=True)
    argv = (sys.executable, "-m", module, *options, "-m", _TRAIN, str(run_dir))
    return LaunchPlan((Process(argv, env),), start.num_processes, signed)


def launcher_command(run_dir: Path, start: Start) -> str:
    """The same as a person types it, with torchrun unless it is for accelerate."""
    name = ("accelerate", "launch") if start.launcher == "accelerate" else ("torchrun",)
    return shlex.join([*name, *_options(run_dir, start), "-m", _TRAIN, str(run_dir)])


def resume_command(run_dir: Path, start: Start) -> str:
    """The `dft train` that goes on with a run in the way that it was started."""
    processes = ("--nproc", str(start.num_processes)) if start.num_processes > 1 else ()
    launcher = ("--launcher", start.launcher) if start.launcher != "dft" else ()
    file = ("--accelerate-config", str(start.accelerate_file)) if start.accelerate_file is not None else ()
    return shlex.join(["dft", "train", str(run_dir), *processes, *launcher, *file])


def accelerate_file(run_dir: Path) -> Path:
    """Where `accelerate_config` is written."""
    return run_dir / "accelerate.json"


def accelerate_config(config: RunConfig, num_processes: int) -> dict[str, Any]:
    """A file for `accelerate launch` that says of the strategy what run.yaml says; configs/accelerate/ has them with
    comments. MULTI_GPU means processes, on CPUs too."""
    strategy = config.strategy
    made: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "num_processes": num_processes,
        "main_process_port": 0,  # any free one
        "mixed_precision": "bf16" if config.model.dtype == "bf16" else "no",
    }
    match strategy:
        case DdpStrategy():
            return {"distributed_type": "MULTI_GPU", **made}
        case FsdpStrategy():
            fsdp = {
                "fsdp_version": 2,
                "fsdp_reshard_after_forward": strategy.reshard_after_forward,
                "fsdp_offload_params": strategy.cpu_offload,
            }
            if strategy.dp_replicate > 1:
                made["parallelism_config"] = {
                    "parallelism_config_dp_replicate_size": strategy.dp_replicate,
                    "parallelism_config_dp_shard_size": strategy.dp_shard or num_processes // strategy.dp_replicate,
                }
            return {"distributed_type": "FSDP", "fsdp_config": fsdp, **made}
        case DeepspeedStrategy():
            engine = {"deepspeed_config_file": strategy.config}
            return {"distributed_type": "DEEPSPEED", "deepspeed_config": engine, **made}
        case LauncherStrategy():
            raise AssertionError("its file is the user's")
        case _:
            assert_never(strategy)


def _options(run_dir: Path, start: Start, place: Place | None = None, ours: bool = False) -> tuple[str, ...]:
    if start.launcher == "accelerate":
        file = start.accelerate_file or accelerate_file(run_dir)
        processes = place.num_ranks if place else start.num_processes
        return ("--config_file", str(file), "--num_processes", str(processes), *(_machines(place) if place else ()))
    # it leaves signals to the ranks, and looks after them seldom enough that `launcher.foreign` is the first to know
    habits = ("--signals-to-handle", "SIGQUIT", "--monitor-interval", "0.5") if ours else ()
    return (*(_meeting(place) if place else ("--standalone",)), "--nproc-per-node", str(start.num_processes), *habits)


def _meeting(place: Place) -> tuple[str, ...]:
    endpoint = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{place.host}:{place.port}", "--rdzv-id", place.id)
    return ("--nnodes", str(place.num_nodes), *endpoint)


def _machines(place: Place) -> tuple[str, ...]:
    """The same in accelerate's words."""
    machines = ("--num_machines", str(place.num_nodes), "--machine_rank", str(place.node))
    return (*machines, "--main_process_ip", place.host, "--main_process_port", str(place.port))


def _on_this_machine(num_processes: int) -> dict[str, str]:
    """What the ranks of one machine want to know: their share of the cores, and to talk over loopback."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "TOKENIZERS_PARALLELISM": "false",
    }
