"""Reading `model/` back before it counts: what a user loads later is what stands on the disk, not what was meant.

Other trainers have published empty adapters (a shard that was gathered too late) and half-written files; each of them
looked like a checkpoint until somebody needed it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from distributed_ft.artifacts import read_json
from distributed_ft.errors import CheckpointError


@dataclass(frozen=True)
class Stored:
    """What a tensor in a file has to be."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def check_model(directory: Path, stem: str, expected: dict[str, Stored]) -> None:
    """Read `directory`'s safetensors files: names, shapes, dtypes; no tensor is empty, every number is finite.

    Args:
        directory: `model/` of a checkpoint.
        stem: of `<stem>.safetensors`, or of several files and their index.
        expected: every tensor that must be there, by its name in the files.

    One tensor is in memory at a time. Raises CheckpointError, naming the file and the tensor.
    """
    left = dict(expected)
    for file in _files(directory, stem, expected):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    problem = _problem(tensors.get_tensor(name), left.pop(name, None))
                    if problem is not None:
                        raise CheckpointError(f"{file}: {name}: {problem}")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read back: {error}") from None
    if left:
        more = f", and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"{directory}: {next(iter(left))}{more}: missing")


def _files(directory: Path, stem: str, expected: dict[str, Stored]) -> list[Path]:
    """The files that a loader would read; an index must send it to each expected tensor."""
    index = directory / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [directory / f"{stem}.safetensors"]
    where: dict[str, str] = read_json(index)["weight_map"]
    for name in expected:
        if name not in where:
            raise CheckpointError(f"{index}: {name}: missing")
    return [directory / name for name in sorted(set(where.values()))]


def _problem(tensor: torch.Tensor, expected: Stored | None) -> str | None:
    if expected is None:
        return "is not of this model, or stands in two files"
    if tensor.numel() == 0:
        return f"is empty; its shape should be {list(expected.shape)}"
    if tuple(tensor.shape) != expected.shape:
        return f"its shape is {list(tensor.shape)}, and should be {list(expected.shape)}"
    if tensor.dtype != expected.dtype:
        return f"its dtype is {tensor.dtype}, and should be {expected.dtype}"
    if not torch.isfinite(tensor).all():
        return "holds numbers that are not finite; a checkpoint of it would be useless"
    return None
