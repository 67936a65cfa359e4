"""What resume needs of a ZeRO engine: fp32 parameters and optimizer state, in fragments.

A rank holds a piece `[start, start + numel)` of a parameter, flattened, or of several parameters, or none; it writes
its pieces under the parameters' names. Read back, a rank picks what overlaps its own pieces: any number of ranks, and
any stage, can go on from what any other wrote.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distributed_ft.errors import CheckpointError
from distributed_ft.parallel.world import World

Stored = dict[str, list[tuple[int, int, dict[str, Tensor]]]]  # name -> start, numel and tensors of each piece
PARAMETER = "parameter"  # beside the optimizer's own keys (exp_avg, …)


@dataclass(frozen=True)
class Piece:
    """A rank's part of a parameter. start, numel: in the flattened parameter; tensors: 1-D, by key; views, which can be
    written to."""

    start: int
    numel: int
    tensors: dict[str, Tensor]


def save(
    engine: Any, stage: int, module: nn.Module, world: World, directory: Path, background: bool
) -> Future[Any] | None:
    """Write copies of this rank's pieces, by a thread in the `background`: see `Strategy.save`.

    Raises OSError on every rank when one cannot; in the background, the future does on that rank.
    """
    copies = {
        name: (piece.start, piece.numel, {key: tensor.cpu().clone() for key, tensor in piece.tensors.items()})
        for name, piece in _pieces(engine, stage, module)
    }
    steps = [state["step"].cpu().clone() for state in engine.optimizer.optimizer.state.values() if "step" in state]
    content = {"pieces": copies, "step": steps[0] if steps else None}
    file = directory / f"rank-{world.rank:05d}.pt"
    if background:
        thread = ThreadPoolExecutor(1, "state")
        writing = thread.submit(_write, content, file)
        thread.shutdown(wait=False)  # it ends when this is done
        return writing
    problem: OSError | None = None
    try:
        _write(content, file)
    except OSError as error:
        problem = error
    world.agree(problem)
    return None


def _write(content: dict[str, Any], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, file)
    except RuntimeError as error:  # what torch.save raises on a full disk
        raise OSError(str(error)) from None


@torch.no_grad()
def load(engine: Any, stage: int, module: nn.Module, world: World, directory: Path) -> None:
    """Read this rank's pieces out of what any number of ranks wrote. Raises CheckpointError when some is missing."""
    files = [torch.load(f, mmap=True, weights_only=True) for f in sorted(directory.glob("rank-*.pt"))]
    stored: Stored = {}
    for content in files:
        for name, piece in content["pieces"].items():
            stored.setdefault(name, []).append(piece)
    if any(tensors.keys() != {PARAMETER} for pieces in stored.values() for _, _, tensors in pieces):
        steps = [content["step"] for content in files if content["step"] is not None]
        _make_optimizer_state(engine, stage, steps[0] if steps else None)
    problem: CheckpointError | None = None
    try:
        for name, piece in _pieces(engine, stage, module):
            for key, tensor in piece.tensors.items():
                tensor.copy_(_read(stored, name, key, piece.start, piece.numel))
    except CheckpointError as error:
        problem = error
    world.agree(problem)
    _spread_parameters(engine, stage, module, stored)


def _read(stored: Stored, name: str, key: str, start: int, numel: int) -> Tensor:
    """Elements [start, start + numel) of a flattened parameter or of its optimizer state."""
    out = torch.empty(numel)
    covered = 0
    for begin, size, tensors in stored.get(name, ()):
        low, high = max(start, begin), min(start + numel, begin + size)
        if low < high:
            out[low - start : high - start] = tensors[key][low - begin : high - begin]
            covered += high - low
    if covered != numel:
        raise CheckpointError(f"the checkpoint lacks {numel - covered} of {numel} numbers of {name} ({key})")
    return out


def _pieces(engine: Any, stage: int, module: nn.Module) -> Iterator[tuple[str, Piece]]:
    """Name and piece of each trained parameter of which this rank updates a part."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            piece = _partition(engine.optimizer, parameter) if stage == 3 else _fragment(engine.optimizer, parameter)
            if piece is not None:
                yield name, piece


def _partition(zero: Any, parameter: Any) -> Piece | None:
    """Stage 3: each parameter is cut into equal parts, the last one padded."""
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = size * zero._get_param_partition_rank(parameter)
    numel = min(size, parameter.ds_numel - start)
    if numel <= 0:
        return None
    flat = zero.fp32_partitioned_groups_flat[group]
    return Piece(start, numel, {k: t.narrow(0, offset, numel) for k, t in _flat_tensors(zero, flat).items()})


def _fragment(zero: Any, parameter: Any) -> Piece | None:
    """Stages 1 and 2: all parameters of a group are laid end to end, and that is cut into equal parts."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    tensors = _flat_tensors(zero, flat)
    return Piece(there.start, there.numel, {k: t.narrow(0, here.start, here.numel) for k, t in tensors.items()})


def _flat_tensors(zero: Any, flat: Tensor) -> dict[str, Tensor]:
    state = zero.optimizer.state.get(flat, {})
    same = {key: value for key, value in state.items() if torch.is_tensor(value) and value.shape == flat.shape}
    return {PARAMETER: flat.data, **same}


def _make_optimizer_state(engine: Any, stage: int, step: Tensor | None) -> None:
    """An optimizer has no state before its first step: take one of size zero, then set the count, if it counts (SGD
    with momentum does not)."""
    zero = engine.optimizer
    flats = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    rates = [group["lr"] for group in zero.optimizer.param_groups]
    for group in zero.optimizer.param_groups:
        group["lr"] = 0.0
    for number, flat in enumerate(flats):
        kept = flat.grad  # where the optimizer is offloaded: memory that gradients are copied to
        flat.grad = torch.zeros_like(flat)
        zero._optimizer_step(number)
        flat.grad = kept
        state = zero.optimizer.state[flat]
        if step is not None:
            state["step"].copy_(step)  # it lies where this optimizer wants it
    for group, rate in zip(zero.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _spread_parameters(engine: Any, stage: int, module: nn.Module, stored: Stored) -> None:
    """Put the values into the parameters that the forward pass reads, where they are not the optimizer's own memory.
    A collective in stage 3, which keeps small parameters whole on every rank."""
    parameters: dict[str, Any] = dict(module.named_parameters())
    if stage < 3:
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                whole = _read(stored, name, PARAMETER, 0, parameter.numel())
                parameter.data.copy_(whole.view(parameter.shape))
        return
    zero = engine.optimizer
    zero._partition_all_parameters()  # whatever is whole now is stale
    for name, piece in _pieces(engine, stage, module):
        parameters[name].ds_tensor.data.view(-1)[: piece.numel].copy_(piece.tensors[PARAMETER])
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
