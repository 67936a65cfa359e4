"""Filling a model that was built, and perhaps sharded, without memory."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from distributed_ft.model.weights import Slot, Weights
from distributed_ft.parallel.local_shards import local
from distributed_ft.parallel.world import World


@torch.no_grad()
def fill(module: nn.Module, content: Weights, world: World, device: torch.device) -> None:
    """Read `content` into `module`, each rank the rows that it holds. A collective.

    Args:
        module: built on the meta device but for what `content` does not name (adapters, rotary tables), which stays.
        content: where each tensor comes from.
        world: the ranks; for 4-bit weights they take turns, so that each reads and quantises its share of the files.
        device: where the weights stay.

    No rank holds more than its shards and one tensor.
    """
    module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
    for turn, slot in enumerate(content.slots):
        slot.retie()
        if slot.packed:
            packed = _quantized(slot, content, world, turn)
            if isinstance(slot.tensor, DTensor):
                local(slot.tensor).copy_(packed[_rows(slot.tensor)])
            else:
                slot.module.weight = content.packed(packed.to(device), slot.module)
        elif _rows(slot.tensor) != slice(0, 0):
            local(slot.tensor).copy_(slot.read(_rows(slot.tensor)))


@torch.no_grad()
def fill_slot(slot: Slot, content: Weights, world: World, turn: int) -> None:
    """Make room for one whole tensor on every rank, and read this rank's part of it: the rows around its run of the
    flattened tensor, which is cut into equal runs by ZeRO-3. The rest is arbitrary. A collective.

    4-bit weights are whole on every rank, read by the rank whose `turn` it is; so are buffers, which nobody partitions.
    """
    if slot.packed:
        slot.module.weight = content.packed(_quantized(slot, content, world, turn), slot.module)
        return
    whole = torch.empty_like(slot.tensor, device=world.device)
    if isinstance(slot.tensor, nn.Parameter):
        rows = _rows_of_run(whole, world)
        (whole[rows] if whole.ndim else whole).copy_(slot.read(rows))
        whole = nn.Parameter(whole, slot.tensor.requires_grad)
    else:
        whole.copy_(slot.read())
    setattr(slot.module, slot.attribute, whole)
    slot.retie()


def _rows_of_run(whole: Tensor, world: World) -> slice:
    """The rows that hold this rank's run of the flattened tensor; all there is of a scalar."""
    if not whole.ndim:
        return slice(None)
    run, width = -(-whole.numel() // world.size), whole.numel() // whole.shape[0]
    start, end = min(run * world.rank, whole.numel()), min(run * (world.rank + 1), whole.numel())
    return slice(start // width, -(-end // width))


def _quantized(slot: Slot, content: Weights, world: World, turn: int) -> Tensor:
    """The bytes of a tensor that the rank whose `turn` it is reads and quantises, on every rank's device; its module
    gets the scales."""
    packed = torch.empty(slot.tensor.shape, dtype=torch.uint8, device=world.device)
    state: Any = None
    reader = turn % world.size
    if world.has_turn(turn):
        packed, state = content.quantize(slot, world.device)
        state.to("cpu")
    if world.size > 1:
        dist.broadcast(packed, reader)
        state = world.from_rank(reader, state)
    state.to(world.device)
    slot.module.quant_state = state
    return packed


def _rows(tensor: Tensor) -> slice:
    """The rows of the whole tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0]) if shape[0] else slice(0, 0)
