"""Checkpoints: what a user loads, what resume needs, and the manifest that makes the two count.

Every function here that takes a strategy is a collective. What only rank 0 does sits between collectives, and its
failure (a full disk) reaches every rank through `World.agree`. With `checkpoint.async` the end of a save runs in a
thread of each rank, which meet on a process group of their own.
"""

import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from distributed_ft import artifacts
from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError
from distributed_ft.model import methods
from distributed_ft.model.load import DTYPES
from distributed_ft.parallel.strategy import Strategy
from distributed_ft.parallel.world import World
from distributed_ft.publishing import prune, publish, staging
from distributed_ft.train.model_check import Stored, check_model

SHARD_BYTES = 2 * 2**30  # of a safetensors file of full weights: rank 0 never holds more than this


@dataclass
class TrainState:
    """Where a run stands, beside parameters, moments and random states."""

    step: int = 0  # completed optimizer steps
    tokens: int = 0  # supervised tokens seen
    skipped_in_a_row: int = 0  # steps whose loss or gradient was not finite
    validation_owed: bool = False  # the validation after this step was given up, as the run was asked to stop


class Saving:
    """A checkpoint on its way to the disk: from the copy that training waits for to the manifest that makes it count.

    Every rank holds one, and every rank's is done before any rank's `finish` returns.
    """

    def __init__(self, step: int, seconds_blocked: float, publishing: Future[float]) -> None:
        self.step = step
        self.seconds_blocked = seconds_blocked  # that training waited for it
        self._publishing = publishing

    @property
    def done(self) -> bool:
        """Whether `finish` returns at once, on this rank."""
        return self._publishing.done()

    def finish(self) -> float:
        """Wait until it is published; the seconds since it was begun.

        Raises CheckpointError on every rank when it could not be; what was there before is untouched.
        """
        begin = time.perf_counter()
        try:
            return self._publishing.result()
        finally:
            self.seconds_blocked += time.perf_counter() - begin


def save(
    run: RunDirectory, config: RunConfig, world: World, strategy: Strategy, model: nn.Module, state: TrainState
) -> Saving:
    """Begin a checkpoint of this step: `checkpoints/step-…` appears, LATEST moves and old ones go when all of its files
    are on disk, here or, with `checkpoint.async`, while training goes on. A collective.

    `model/` is written before this returns, streamed, so that rank 0 needs no memory for a second model; `state/` is
    copied (each rank its shards) and written by a thread, where the strategy can.

    Raises CheckpointError on every rank when it cannot be written; what was there before is untouched.
    """
    begin = time.perf_counter()
    partial = run.checkpoints / f".{artifacts.step_name(state.step)}.partial"
    try:
        _on_main(world, lambda: staging(run, state.step))
        expected = write_model(strategy, model, config, world, partial / "model", run.adapter_start)
        writing = write_state(strategy, world, state, partial / "state", config.checkpoint.in_background)
    except (OSError, CheckpointException, CheckpointError) as error:
        raise _given_up(run, world, partial, state.step, error) from None
    made_whole = functools.partial(_publish, run, config, world.aside(), partial, state.step, expected, writing, begin)
    publishing: Future[float] = Future()
    if config.checkpoint.in_background:
        thread = ThreadPoolExecutor(1, "checkpoint")
        publishing = thread.submit(made_whole)
        thread.shutdown(wait=False)  # it ends when this is done
    else:
        publishing.set_result(made_whole())
    return Saving(state.step, time.perf_counter() - begin, publishing)


def _publish(
    run: RunDirectory,
    config: RunConfig,
    world: World,
    partial: Path,
    step: int,
    expected: dict[str, Stored],
    writing: Future[Any] | None,
    begin: float,
) -> float:
    """When every rank's files are there, read `model/` back, write the manifest, move LATEST.

    `world` is for the thread that this may run in. Returns the seconds since `begin`. A collective; raises
    CheckpointError on every rank."""
    problem: Exception | None = None
    try:
        if writing is not None:
            writing.result()
        if world.is_main:
            check_model(partial / "model", methods.weights_name(config.method), expected)
    except CheckpointException as error:
        problem = OSError(_cause(error))
    except Exception as error:  # whatever it is, the others must not wait for this rank
        problem = error
    try:
        world.agree(problem)
        _on_main(world, lambda: publish(run, partial, step, world.size))
    except (OSError, CheckpointError) as error:
        raise _given_up(run, world, partial, step, error) from None
    if world.is_main:
        try:
            prune(run, config.checkpoint.keep)
        except OSError as error:  # an old checkpoint that cannot be deleted harms nobody
            logging.getLogger("distributed_ft").warning("an old checkpoint could not be deleted: %s", error)
    return time.perf_counter() - begin


def _given_up(run: RunDirectory, world: World, partial: Path, step: int, error: BaseException) -> CheckpointError:
    """Nothing of it stays; the message says what to do."""
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    again = artifacts.resume_command(run.path, world.size)
    if isinstance(error, CheckpointError):
        return CheckpointError(
            f"{error}; the checkpoint of step {step} does not count. Earlier checkpoints are untouched; look at the "
            f"disk and the base, then continue with: {again}"
        )
    return CheckpointError(
        f"{run.path}: the checkpoint of step {step} could not be written: {_cause(error)}. Earlier "
        f"checkpoints are untouched; make room, then continue with: {again}"
    )


def write_model(
    strategy: Strategy, model: nn.Module, config: RunConfig, world: World, directory: Path, start: Path
) -> dict[str, Stored]:
    """`model/`: full tensors, one at a time through rank 0, in files of at most SHARD_BYTES, as PEFT or transformers
    read them; returns what must stand in the files (on rank 0). `start`: see `methods.as_saved`.

    Raises OSError (disk), CheckpointError (a tensor that was not gathered whole); on every rank."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    keys = dict(methods.saved_tensors(model, config.method))
    files = _Shards(directory, methods.weights_name(config.method))
    dtype = methods.saved_dtype(config.method, DTYPES[config.model.dtype])
    written: dict[str, Stored] = {}
    problem: Exception | None = None
    for name, tensor in strategy.gather(keys):
        if world.is_main and problem is None:  # a failing disk must not keep the others waiting
            try:
                _check_whole(directory, name, tensor, tensors[name])
                saved = methods.as_saved(config.method, keys[name], tensor, start).to(_file_dtype(tensor, dtype))
                files.add(keys[name], saved)
                written[keys[name]] = Stored(tuple(saved.shape), saved.dtype)
            except (OSError, CheckpointError) as error:
                problem = error
    if world.is_main and problem is None:
        try:
            if len(written) < len(keys):
                raise CheckpointError(f"{directory}: {min({*keys.values()} - {*written})}: not gathered")
            files.close()
            methods.write_description(model, config.method, config.model.base, dtype, directory)
        except (OSError, CheckpointError) as error:
            problem = error
    world.agree(problem)
    return written


def write_state(
    strategy: Strategy, world: World, state: TrainState, directory: Path, background: bool
) -> Future[Any] | None:
    """`state/`: each rank's random state, the position, and shards of parameters and moments, the last of them in the
    `background` where the strategy can (see `Strategy.save`).

    Raises OSError on all ranks."""
    problem: OSError | None = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(world), directory / f"random-{world.rank:05d}.pt")
        if world.is_main:
            (directory / "train.json").write_text(json.dumps(asdict(state)))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        problem = OSError(str(error))
    world.agree(problem)
    return strategy.save(directory / "shards", background)


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


def _check_whole(directory: Path, name: str, gathered: Tensor, tensor: Tensor) -> None:
    """Raise CheckpointError unless `gathered` has what `tensor` of the module stands for."""
    shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # ZeRO-3 leaves an empty tensor in the module
    if gathered.numel() == 0 or tuple(gathered.shape) != shape:
        raise CheckpointError(f"{directory}: {name}: gathered as {list(gathered.shape)}, its shape is {list(shape)}")


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
