"""`environment.json`: what a run ran on, so that a figure can be traced to it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed_ft.artifacts import RunDirectory, read_json, write_json
from distributed_ft.config import deepspeed
from distributed_ft.config.schema import DeepspeedStrategy, RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.parallel.world import World

_PACKAGES = ("distributed_ft", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")


def record(run: RunDirectory, config: RunConfig, world: World, trainable: int, total: int) -> None:
    """Write versions, source revision, strategy, hosts and devices of all ranks, and how many of the model's parameters
    are trained. A collective."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _cpu_name()
    mine = {"rank": world.rank, "host": platform.node(), "device": device, "threads": torch.get_num_threads()}
    ranks: list[Any] = [None] * world.size
    dist.all_gather_object(ranks, mine)
    if world.is_main:
        write_json(
            run.environment,
            {
                "schema": 1,
                "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
                "cuda": torch.version.cuda,
                "git_sha": _git_sha(),
                "platform": platform.platform(),
                "parameters": {"trainable": trainable, "total": total, "share": trainable / total},
                "strategy": _strategy(config),
                "world_size": world.size,
                "hosts": sorted({rank["host"] for rank in ranks}),
                "devices": sorted({rank["device"] for rank in ranks}),
                "ranks": ranks,
            },
        )


def _strategy(config: RunConfig) -> dict[str, Any]:
    """As it is run: the launcher's, where run.yaml leaves it to it, and DeepSpeed's knobs from their own file."""
    strategy = config.strategy
    knobs = {"knobs": deepspeed.read(strategy.config)} if isinstance(strategy, DeepspeedStrategy) else {}
    return {**strategy.model_dump(), **knobs}


def refuse_other_state(run: RunDirectory, config: RunConfig) -> None:
    """Where the strategy is left to the launcher, it may change between starts, but DeepSpeed keeps state of its own.

    Raises ConfigError when the checkpoints were written by the other kind.
    """
    if not (run.environment.exists() and run.all_checkpoints()):
        return
    began, now = read_json(run.environment).get("strategy", {}).get("type"), config.strategy.type
    if began is not None and (began == "deepspeed") != (now == "deepspeed"):
        raise ConfigError(
            f"strategy.type: {now}: the checkpoints of {run.path} were written under {began}, and neither reads the "
            f"other's state; start it under {began} again, or under another name"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    """Revision of the working directory, with `+dirty` for uncommitted changes; None outside a repository."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if sha.returncode else sha.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
