"""The two halves of a strategy that DDP and FSDP2 share: the optimizer step, and the state that resume needs."""

import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from distributed_ft.parallel.local_shards import LocalShards
from distributed_ft.parallel.strategy import StepInfo

# Frozen weights come from the base, so they are neither written nor read.
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


def clip_and_step(optimizer: Optimizer, max_grad_norm: float | None, lr: float, usable: bool) -> StepInfo:
    """Clip by the global norm, update with rate `lr` (times a group's `lr_ratio`), zero the gradients.

    Every rank sees the same norm (it is reduced over shards), so all skip a step with a non-finite one together.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    grad_norm = float(norm)
    skipped = not (usable and math.isfinite(grad_norm))
    if not skipped:
        if max_grad_norm is not None:
            clip_grads_with_norm_(parameters, max_grad_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepInfo(grad_norm, skipped)


def save_state(
    model: nn.Module, optimizer: Optimizer, directory: Path, background: ProcessGroup | None = None
) -> Future[Any] | None:
    """Trained parameters and optimizer state, by parameter name, each rank its shards (torch's DCP format).

    `background`: a group that a thread may use to write copies of them while training goes on; see `Strategy.save`.
    """
    state = _state(model, optimizer)
    if background is None:
        state_dict_saver.save(state, checkpoint_id=directory)
        return None
    written = state_dict_saver.async_save(state, checkpoint_id=directory, process_group=background)
    assert isinstance(written, Future), "the stager that torch takes by default copies before it returns"
    return written


def load_state(model: nn.Module, optimizer: Optimizer, directory: Path) -> None:
    """Read what `save_state` wrote into `model` and `optimizer`, resharded to this world.

    Raises CheckpointError when the optimizer's state cannot be resharded: see `LocalShards`.
    """
    if isinstance(optimizer, LocalShards):
        state_dict_loader.load({"parameters": _parameters(model)}, checkpoint_id=directory)
        optimizer.restore(model, directory, "optimizer")
        return
    state = _state(model, optimizer)
    state_dict_loader.load(state, checkpoint_id=directory)  # parameters in place
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_TRAINED_ONLY)


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    parameters = _parameters(model)
    if isinstance(optimizer, LocalShards):
        return {"parameters": parameters, "optimizer": optimizer.stored(model)}
    is_new = not optimizer.state
    moments = get_optimizer_state_dict(model, optimizer, options=_TRAINED_ONLY)
    if is_new:  # torch made a state by a step of its own, which must not count (all steps until now were skipped)
        for made in optimizer.state.values():
            for value in made.values():
                if isinstance(value, Tensor):
                    value.zero_()
    return {"parameters": parameters, "optimizer": moments}


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Not by the module's `state_dict()`: what bitsandbytes adds to it for 8-bit layers is no parameter."""
    for part in model.modules():
        if isinstance(part, FSDPModule):  # a forward pass without gradients leaves the outermost group gathered
            part.reshard()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def on_main(tensor: Tensor, is_main: bool) -> Tensor:
    """The tensor's values on the CPU of rank 0, an empty tensor elsewhere. A collective for a sharded tensor."""
    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if is_main else torch.empty(0)
