"""DDP: every process holds everything, gradients are summed. With one process: plain training."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distributed_ft.data.batches import micro_batch
from distributed_ft.model.weights import Weights
from distributed_ft.parallel import update
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.strategy import MakeOptimizer, StepInfo
from distributed_ft.parallel.world import World


class Ddp:
    """See `Strategy`. Wraps the module in torch's DistributedDataParallel when there is more than one process."""

    def __init__(self, world: World, max_grad_norm: float | None) -> None:
        self.world = world
        self.max_grad_norm = max_grad_norm
        self.module: nn.Module
        self.optimizer: Optimizer
        self.wrapped: DistributedDataParallel | None = None

    def setup(self, module: nn.Module, content: Weights | None, make_optimizer: MakeOptimizer) -> nn.Module:
        if content is not None:
            fill(module, content, self.world, self.world.device)
        self.module = module.to(self.world.device)
        self.optimizer = make_optimizer(self.module)
        if self.world.size == 1:
            return self.module
        self.wrapped = DistributedDataParallel(
            self.module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            init_sync=not self.world.imagined,  # it compares what the ranks have
        )
        self.wrapped.register_comm_hook(None, _sum_hook)
        if not self.world.imagined:
            self._settle_buckets(self.wrapped)
        return self.wrapped

    def _settle_buckets(self, wrapped: nn.Module) -> None:
        """DDP lays its buckets out anew after the first backward pass, and where a gradient lies in a bucket decides in
        which order three or more ranks add theirs. Two passes without a target get that over with, so that a resumed
        run adds like the uninterrupted one, bit for bit."""
        nothing = micro_batch((), ()).to(self.world.device)
        for _ in range(2):
            wrapped(nothing).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def sync_gradients(self, on: bool) -> None:
        if self.wrapped is not None:
            self.wrapped.require_backward_grad_sync = on  # what `no_sync()` sets

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


def _sum_hook(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP divides by the world size; the loss is already divided by the global token count, so here it is a sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)

    def done(future: Any) -> Tensor:
        future.value()  # raises what went wrong
        return bucket.buffer()

    summed: torch.futures.Future[Tensor] = work.get_future().then(done)
    return summed
