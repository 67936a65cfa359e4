"""Whether two runs are one and the same: the metrics of each step, and each tensor of each checkpoint, bit by bit."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json_lines

METRICS = ("loss", "grad_norm", "lr", "tokens", "samples")
Named = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Difference:
    """The first thing that differs: after which step, what it is called, and by how much."""

    step: int
    what: str
    how: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}: {self.how}"


def steps_of(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """The METRICS of each finished step."""
    lines = (line for line in read_json_lines(run.metrics) if "loss" in line)
    return {line["step"]: {name: line[name] for name in METRICS} for line in lines}


def metrics_differ(a: RunDirectory, b: RunDirectory, steps: Iterable[int]) -> Difference | None:
    """The first metric that is not the very same number in both."""
    first, second = steps_of(a), steps_of(b)
    for step in steps:
        if step not in first or step not in second:
            return Difference(step, "metrics.jsonl", f"has no such step in {(a if step not in first else b).path}")
        for name in METRICS:
            x, y = first[step][name], second[step][name]
            if x != y:
                return Difference(step, name, f"{x} and {y}")
    return None


def largest_difference(a: RunDirectory, b: RunDirectory, steps: Iterable[int], name: str) -> tuple[float, int]:
    """The largest relative difference of a metric, and its step; infinite where a step was skipped in one alone."""
    first, second = steps_of(a), steps_of(b)
    return max((_relative(first[step][name], second[step][name]), step) for step in steps)


def _relative(a: float | None, b: float | None) -> float:
    if a == b:
        return 0.0
    return math.inf if a is None or b is None or b == 0 else abs(a - b) / abs(b)


def model_differs(a: Checkpoint, b: Checkpoint) -> tuple[Difference | None, int]:
    """The first tensor of `model/` that differs, and how many were compared."""
    return _differ(a.step, _weights(a.model), _weights(b.model))


def state_differs(a: Checkpoint, b: Checkpoint) -> tuple[Difference | None, int]:
    """The first thing of `state/` (position, random state, parameters, optimizer) that differs, and how many there are.

    Only of checkpoints of as many processes."""
    return _differ(a.step, _state(a.state), _state(b.state))


def _differ(step: int, a: Named, b: Named) -> tuple[Difference | None, int]:
    compared = 0
    for first, second in zip_longest(a, b):
        if first is None or second is None or first[0] != second[0]:
            names = " and ".join("nothing" if entry is None else entry[0] for entry in (first, second))
            return Difference(step, "what is saved", names), compared
        how = _how(first[1], second[1])
        if how:
            return Difference(step, first[0], how), compared
        compared += 1
    return None, compared


def _how(a: Any, b: Any) -> str:
    """In what two values differ; the empty string if in no bit."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return "" if a == b else f"{a} and {b}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{list(a.shape)} {a.dtype} and {list(b.shape)} {b.dtype}"
    if torch.equal(_bits(a), _bits(b)):
        return ""
    apart = (a.double() - b.double()).abs().reshape(-1)
    place = int(apart.nan_to_num(nan=math.inf).argmax())
    values = a.reshape(-1)[place].item(), b.reshape(-1)[place].item()
    count = int((apart != 0).sum())
    return (
        f"{count:,} of {a.numel():,} numbers differ, by {apart[place].item():.3g} at most: {values[0]} and {values[1]}"
    )


def _bits(tensor: Tensor) -> Tensor:
    """So that NaN equals NaN, and 0 does not equal -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _weights(directory: Path) -> Named:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield f"model/{name}", file.get_tensor(name)


def _state(directory: Path) -> Named:
    yield from _flat("state/train", json.loads((directory / "train.json").read_text()))
    for path in sorted(directory.glob("random-*.pt")):
        yield from _flat(f"state/{path.stem}", torch.load(path, weights_only=True))
    shards = directory / "shards"
    for path in sorted(shards.glob("rank-*.pt")):
        yield from _flat(f"state/{path.stem}", torch.load(path, weights_only=True))
    if (shards / ".metadata").exists():
        yield from _distributed(shards)


def _distributed(directory: Path) -> Named:
    """One entry of torch's DCP format at a time, whole: no memory for all of it is needed."""
    there = FileSystemReader(directory).read_metadata().state_dict_metadata
    for key in sorted(there):
        meta = there[key]
        entry: dict[str, Any] = {key: None}
        if isinstance(meta, TensorStorageMetadata):
            entry[key] = torch.empty(meta.size, dtype=meta.properties.dtype)
        with warnings.catch_warnings():  # torch warns that there is one process
            warnings.simplefilter("ignore", UserWarning)
            state_dict_loader.load(entry, checkpoint_id=directory, no_dist=True)
        yield f"state/{key}", entry[key]


def _flat(name: str, value: Any) -> Named:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _flat(f"{name}/{key}", value[key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(f"{name}/{index}", item)
    else:
        yield name, value
