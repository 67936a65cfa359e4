"""Checkpoints: what a user loads, what resume needs, and the manifest that makes the two count.

Every function here that takes a strategy is a collective. What only rank 0 does sits between collectives, and its
failure (a full disk) reaches every rank through `World.agree`.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from distributed_ft import artifacts
from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError, TrainingError
from distributed_ft.model import methods
from distributed_ft.model.load import DTYPES
from distributed_ft.parallel.strategy import Strategy
from distributed_ft.parallel.world import World

SHARD_BYTES = 2 * 2**30  # of a safetensors file of full weights: rank 0 never holds more than this


@dataclass
class TrainState:
    """Where a run stands, beside parameters, moments and random states."""

    step: int = 0  # completed optimizer steps
    tokens: int = 0  # supervised tokens seen
    skipped_in_a_row: int = 0  # steps whose loss or gradient was not finite


def save(
    run: RunDirectory, config: RunConfig, world: World, strategy: Strategy, model: nn.Module, state: TrainState
) -> None:
    """Publish `checkpoints/step-…`, move LATEST, delete old ones.

    Raises CheckpointError on every rank when it cannot be written; what was there before is untouched.
    """
    partial = run.checkpoints / f".{artifacts.step_name(state.step)}.partial"
    try:
        _on_main(world, lambda: artifacts.staging(run, state.step))
        write_model(strategy, model, config, world, partial / "model", run.adapter_start)
        write_state(strategy, world, state, partial / "state")
        _on_main(world, lambda: artifacts.publish(run, partial, state.step, world.size))
    except (OSError, CheckpointException) as error:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        again = artifacts.resume_command(run.path, world.size)
        raise CheckpointError(
            f"{run.path}: the checkpoint of step {state.step} could not be written: {_cause(error)}. Earlier "
            f"checkpoints are untouched; make room, then continue with: {again}"
        ) from None
    if world.is_main:
        try:
            artifacts.prune(run, config.checkpoint.keep)
        except OSError as error:  # an old checkpoint that cannot be deleted harms nobody
            logging.getLogger("distributed_ft").warning("an old checkpoint could not be deleted: %s", error)


def write_model(
    strategy: Strategy, model: nn.Module, config: RunConfig, world: World, directory: Path, start: Path
) -> None:
    """`model/`: full tensors, one at a time through rank 0, in files of at most SHARD_BYTES, as PEFT or transformers
    read them. `start`: see `methods.as_saved`. Raises OSError (disk), TrainingError (a tensor that is not finite); on
    every rank."""
    names = list(methods.saved_tensors(model, config.method))
    files = _Shards(directory, methods.weights_name(config.method))
    dtype = methods.saved_dtype(config.method, DTYPES[config.model.dtype])
    keys = dict(names)
    problem: Exception | None = None
    for name, tensor in strategy.gather([name for name, _ in names]):
        if world.is_main and problem is None:  # a failing disk must not keep the others waiting
            try:
                if not torch.isfinite(tensor).all():
                    raise TrainingError(f"{name}: not finite; a checkpoint of it would be useless")
                saved = methods.as_saved(config.method, keys[name], tensor, start)
                files.add(keys[name], saved.to(_file_dtype(tensor, dtype)))
            except (OSError, TrainingError) as error:
                problem = error
    if world.is_main and problem is None:
        try:
            files.close()
            methods.write_description(model, config.method, config.model.base, dtype, directory)
        except OSError as error:
            problem = error
    world.agree(problem)


def write_state(strategy: Strategy, world: World, state: TrainState, directory: Path) -> None:
    """`state/`: shards of parameters and moments, each rank's random state, the position.

    Raises OSError on all ranks."""
    strategy.save(directory / "shards")
    problem: OSError | None = None
    try:
        torch.save(random_state(world), directory / f"random-{world.rank:05d}.pt")
        if world.is_main:
            (directory / "train.json").write_text(json.dumps(asdict(state)))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        problem = OSError(str(error))
    world.agree(problem)


def load(checkpoint: Checkpoint, strategy: Strategy, world: World, seed: int) -> TrainState:
    """Restore parameters, moments, random state and position; at another world size too, where a rank without a
    stored random state starts a fresh one."""
    strategy.load(checkpoint.state / "shards")
    state = TrainState(**artifacts.read_json(checkpoint.state / "train.json"))
    stored = checkpoint.state / f"random-{world.rank:05d}.pt"
    if checkpoint.manifest().world_size == world.size and stored.exists():
        set_random_state(torch.load(stored, weights_only=True), world)
    else:
        seed_rank(seed, state.step, world)
    return state


def random_state(world: World) -> dict[str, Tensor]:
    """This rank's generators: dropout is the only one who draws from them."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def set_random_state(states: dict[str, Tensor], world: World) -> None:
    """The reverse of `random_state`."""
    torch.set_rng_state(states["cpu"])
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)


def seed_rank(seed: int, step: int, world: World) -> None:
    """Different random numbers on each rank, the same in each run."""
    digest = hashlib.sha256(f"{seed}|{step}|{world.rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


class _Shards:
    """Writes `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` with an index when it exceeds SHARD_BYTES."""

    def __init__(self, directory: Path, stem: str) -> None:
        self.directory = directory
        self.stem = stem
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.written: list[list[str]] = []
        self.total = 0

    def add(self, key: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        self.total += size
        if self.pending and self.pending_bytes + size > SHARD_BYTES:
            self._flush()
        self.pending[key] = tensor.contiguous()
        self.pending_bytes += size

    def close(self) -> None:
        self._flush()
        if len(self.written) == 1:
            (self.directory / self._part(1)).rename(self.directory / f"{self.stem}.safetensors")
            return
        weight_map = {}
        for number, keys in enumerate(self.written, 1):
            final = f"{self.stem}-{number:05d}-of-{len(self.written):05d}.safetensors"
            (self.directory / self._part(number)).rename(self.directory / final)
            weight_map.update(dict.fromkeys(keys, final))
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        (self.directory / f"{self.stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _part(self, number: int) -> str:
        return f"{self.stem}.part-{number:05d}"

    def _flush(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            save_file(self.pending, self.directory / self._part(len(self.written) + 1), metadata={"format": "pt"})
        except Exception as error:  # safetensors raises its own type for I/O errors
            raise OSError(str(error)) from None
        self.written.append(list(self.pending))
        self.pending, self.pending_bytes = {}, 0


def _file_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """`dtype` for numbers with a fraction; a buffer of integers stays what it is."""
    return dtype if tensor.is_floating_point() else tensor.dtype


def _on_main(world: World, action: Callable[[], object]) -> None:
    """Run `action` on rank 0; every rank leaves together, with the same OSError if it failed."""
    problem: OSError | None = None
    if world.is_main:
        try:
            action()
        except OSError as error:
            problem = error
    world.agree(problem)


def _cause(error: BaseException) -> str:
    """The innermost reason: DCP wraps each rank's exception."""
    failures = getattr(error, "failures", None)
    if failures:
        inner = next(iter(failures.values()))
        return str(inner[0] if isinstance(inner, tuple) else inner)
    return str(error)
