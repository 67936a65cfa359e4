"""What else could be written in run.yaml: settings near the user's own, each measured as theirs was.

If the run does not fit, the steps that cost least come first, one on top of the other, until it does. If it fits, what
may be faster is tried: more sequences at a time, and less recomputation.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ft.config import checks, compat
from distributed_ft.config.schema import DdpStrategy, FsdpStrategy, LoraMethod, QloraMethod, RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.plan.measure import Memory

_PROPOSED = ("model", "method", "strategy", "optim")  # sections in which something is changed
Changes = dict[str, Any]  # dotted key -> value, as `dft train run.yaml key=value` takes it
Measure = Callable[[RunConfig], Memory]
Fits = Callable[[Memory], bool]


@dataclass(frozen=True)
class Proposal:
    """Keys to write, and what was measured with them."""

    changes: Changes
    config: RunConfig
    memory: Memory
    fits: bool


def proposals(
    config: RunConfig, memory: Memory, world_size: int, measure: Measure, fits: Fits, until: float
) -> tuple[list[Proposal], bool]:
    """A few settings that fit, or at least need less, and whether there was time for all that is worth a try.

    Args:
        config, memory: the user's own.
        measure, fits: of a config, and whether what it says is within a GPU.
        until: when no further one is begun, by `time.monotonic`.
    """
    tried: list[Proposal] = []
    candidates = _faster(config, world_size) if fits(memory) else _smaller(config, world_size)
    for changes in candidates:
        if time.monotonic() > until:
            return tried, False
        changed = with_changes(config, changes)
        if _refused(changed, world_size):
            continue
        try:
            found = measure(changed)
        except ConfigError:  # this architecture, or this method, cannot
            continue
        tried.append(Proposal(changes, changed, found, fits(found)))
        if tried[-1].fits and not fits(memory):
            break  # what comes next only costs more
    return tried, True


def _refused(config: RunConfig, world_size: int) -> bool:
    """Whether `dft train` would refuse it. (Paths are the user's own, and were looked at.)"""
    misfits = [
        p for p in checks.problems(config, Path("/")) if p.key[0] in _PROPOSED and p.key[:2] != ("model", "base")
    ]
    return bool(misfits or compat.world_problems(config, world_size) or compat.missing_packages(config))


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """The same run with other values for some keys."""
    tree = config.model_dump(mode="json", by_alias=True)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = tree
        for step in path:
            inner = inner[step]
        inner[last] = value
    return RunConfig.model_validate_json(json.dumps(tree))  # as JSON: a list is a tuple there


def _smaller(config: RunConfig, world_size: int) -> Iterator[Changes]:
    """Steps towards less memory, each with all before it."""
    changes: Changes = {}
    for key, value in _savings(config, world_size):
        changes = {**changes, key: value}
        yield dict(changes)


def _savings(config: RunConfig, world_size: int) -> Iterator[tuple[str, Any]]:
    if config.model.gradient_checkpointing != "full":
        yield "model.gradient_checkpointing", "full"
    if isinstance(config.strategy, DdpStrategy) and world_size > 1:
        yield "strategy", {"type": "fsdp"}
    if config.optim.micro_batch_size > 1:
        yield "optim.micro_batch_size", 1
    if type(config.method) is LoraMethod and not config.method.dora:
        yield "method.type", "qlora"
    if config.method.type == "full" and config.optim.name == "adamw":
        yield "optim.name", "adamw_8bit"
    fsdp = isinstance(config.strategy, FsdpStrategy)
    int8 = isinstance(config.method, QloraMethod) and config.method.quantization == "int8"
    if world_size > 1 and not int8 and not (fsdp and config.strategy.cpu_offload):  # type: ignore[union-attr]
        yield "strategy", {**(config.strategy.model_dump() if fsdp else {"type": "fsdp"}), "cpu_offload": True}


def _faster(config: RunConfig, world_size: int) -> Iterator[Changes]:
    """Settings that need more memory and less time, the boldest first."""
    mode, micro = config.model.gradient_checkpointing, config.optim.micro_batch_size
    less = {"full": "none", "selective": "none", "none": None}[mode]
    more = _larger(config, world_size)
    if less is not None:
        yield {"model.gradient_checkpointing": less}
    if more:
        yield {"optim.micro_batch_size": more[-1]}
    if mode == "full":
        yield {"model.gradient_checkpointing": "selective"}
    if len(more) > 1 and more[0] != micro:
        yield {"optim.micro_batch_size": more[0]}


def _larger(config: RunConfig, world_size: int) -> list[int]:
    """Larger micro-batches that divide a rank's part of the global batch: twice and up to eight times the present."""
    part, micro = config.optim.global_batch_size // world_size, config.optim.micro_batch_size
    return [n for n in range(2 * micro, min(part, 8 * micro) + 1) if part % n == 0][:8]
