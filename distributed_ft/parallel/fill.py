"""Filling a model that was built, and perhaps sharded, without memory."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from distributed_ft.model.weights import Slot, Weights
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
            _fill_packed(slot, content, world, turn % world.size, device)
        elif rows(slot.tensor) != slice(0, 0):
            local(slot.tensor).copy_(slot.read(rows(slot.tensor)))


def _fill_packed(slot: Slot, content: Weights, world: World, reader: int, device: torch.device) -> None:
    """Rank `reader` reads and quantises the tensor; all get the scales, and keep their own rows of the bytes."""
    shape = slot.tensor.shape
    state: Any = None
    packed = torch.empty(shape, dtype=torch.uint8, device=world.device)
    if world.rank == reader:
        packed, state = content.quantize(slot, world.device)
        state.to("cpu")
    if world.size > 1:
        dist.broadcast(packed, reader)
        state = world.from_rank(reader, state)
    assert state is not None
    state.to(world.device)
    slot.module.quant_state = state
    if isinstance(slot.tensor, DTensor):
        local(slot.tensor).copy_(packed[rows(slot.tensor)])
    else:
        slot.module.weight = content.packed(packed.to(device), slot.module)


def rows(tensor: Tensor) -> slice:
    """The rows of the whole tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0]) if shape[0] else slice(0, 0)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of the tensor, as memory to write to."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.data
