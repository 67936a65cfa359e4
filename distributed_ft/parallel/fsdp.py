"""FSDP2: parameters, gradients and optimizer state are sharded over ranks (`torch.distributed.fsdp.fully_shard`)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.optim import Optimizer

from distributed_ft.config.schema import FsdpStrategy
from distributed_ft.errors import ConfigError
from distributed_ft.model.layers import decoder_layers
from distributed_ft.model.weights import Weights
from distributed_ft.parallel import update
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.strategy import MakeOptimizer, StepInfo
from distributed_ft.parallel.world import World


class Fsdp:
    """See `Strategy`. One shard group a decoder layer, and one for the rest (embeddings, last norm, head)."""

    def __init__(self, config: FsdpStrategy, world: World, max_grad_norm: float | None, bf16: bool) -> None:
        self.config = config
        self.world = world
        self.max_grad_norm = max_grad_norm
        self.bf16 = bf16
        self.mesh = make_mesh(config, world)
        self.module: nn.Module
        self.optimizer: Optimizer

    def setup(self, module: nn.Module, content: Weights | None, make_optimizer: MakeOptimizer) -> nn.Module:
        self.module = module
        shard(module, self.mesh, self.config, self.bf16)
        if content is not None:
            home = torch.device("cpu") if self.config.cpu_offload else self.world.device
            fill(module, content, self.world, home)
        if not self.config.cpu_offload:
            module.to(self.world.device)
        self.optimizer = make_optimizer(module)
        return module

    def sync_gradients(self, on: bool) -> None:
        # Gradients are reduced to shards after every micro-batch: kept whole until the last one, they would cost each
        # rank a gradient of the full model. Only the copies of a hybrid mesh wait, and meet once a step.
        _fsdp(self.module).set_requires_all_reduce(on)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, usable: bool) -> StepInfo:
        return update.clip_and_step(self.optimizer, self.max_grad_norm, lr, usable)

    def save(self, directory: Path, background: bool) -> Future[Any] | None:
        group = self.world.background if background else None
        return update.save_state(self.module, self.optimizer, directory, group)

    def load(self, directory: Path) -> None:
        update.load_state(self.module, self.optimizer, directory)

    def gather(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        tensors = self.module.get_submodule("model").state_dict(keep_vars=True)
        for name in names:
            yield name, update.on_main(tensors[name], self.world.is_main)


def make_mesh(config: FsdpStrategy, world: World) -> DeviceMesh:
    """1-D (all ranks shard one copy) or 2-D (replicate x shard). Raises ConfigError when it does not fit the world."""
    replicate = config.dp_replicate
    shard_size = config.dp_shard or world.size // replicate
    if replicate * shard_size != world.size:
        raise ConfigError(
            f"strategy: dp_replicate {replicate} x dp_shard {config.dp_shard or f'({world.size} / {replicate})'} does "
            f"not make {world.size} processes; start {replicate * shard_size or replicate}, or change the mesh"
        )
    if replicate == 1:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("dp_shard",))
    return init_device_mesh(world.device.type, (replicate, shard_size), mesh_dim_names=("dp_replicate", "dp_shard"))


def shard(module: nn.Module, mesh: DeviceMesh, config: FsdpStrategy, bf16: bool) -> None:
    """Apply `fully_shard` in place to each decoder layer of the transformers model inside, then to the whole.

    With bf16, gathered weights are bf16 and gradients are reduced in fp32; each shard keeps its own dtype (fp32 for
    what is trained).
    """
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    on_gpu = mesh.device_type == "cuda"  # pinned memory is for copies to one, and torch has none without
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if config.cpu_offload else OffloadPolicy()
    for layer in decoder_layers(module):
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=config.reshard_after_forward,
        )
    fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)
    # The loss is divided by the global token count already: gradients are summed, not averaged.
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module
