"""Where tensors live, and how gradients meet: the seam between the loop and DDP, FSDP2 (and later ZeRO).

The contract, whatever the strategy: *after `step()` the update used the gradient of the loss summed over all ranks*.
`loss` is a rank's own share (its summed token losses divided by the step's global token count).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never

from torch import Tensor, nn
from torch.optim import Optimizer

from distributed_ft.config.schema import DdpStrategy, FsdpStrategy, StrategyConfig
from distributed_ft.parallel.world import World

MakeOptimizer = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True)
class StepInfo:
    """What an optimizer step did. grad_norm: global L2 norm before clipping; skipped: nothing was updated."""

    grad_norm: float
    skipped: bool


class Strategy(Protocol):
    """The places where the strategies really differ."""

    def setup(self, module: nn.Module, make_optimizer: MakeOptimizer) -> nn.Module:
        """Place and shard `module` (a TokenLoss), make the optimizer over what this rank holds; the module to call."""
        ...

    def sync_gradients(self, on: bool) -> None:
        """Whether the next forward and backward pass ends with gradients meeting: on for the last micro-batch of a
        step. (DDP has to know before the forward pass, so this is no argument of `backward`.)"""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share."""
        ...

    def step(self, lr: float, usable: bool) -> StepInfo:
        """Clip, update with learning rate `lr`, zero. Nothing is updated when not `usable` (the loss is not finite, on
        every rank alike) or the global gradient norm is not finite."""
        ...

    def save(self, directory: Path, background: bool) -> Future[Any] | None:
        """Write what resume needs of trained parameters and optimizer. A collective.

        In the `background`, where the strategy can: what is written was copied when this returns, so that training may
        go on, and the future is done when this rank's files are on disk. None: they are already.
        """
        ...

    def load(self, directory: Path) -> None:
        """The reverse of `save`, at this or another world size. A collective."""
        ...

    def gather(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """One full tensor of `TokenLoss.model` at a time, on the CPU of rank 0 (elsewhere an empty tensor).
        A collective: every rank walks it to the end."""
        ...


def make_strategy(config: StrategyConfig, world: World, max_grad_norm: float | None, bf16: bool) -> Strategy:
    """The strategy of a run; one process with `ddp` is plain training.

    Raises ConfigError when the mesh does not fit the world.
    """
    from distributed_ft.parallel.ddp import Ddp
    from distributed_ft.parallel.fsdp import Fsdp

    match config:
        case DdpStrategy():
            return Ddp(world, max_grad_norm)
        case FsdpStrategy():
            return Fsdp(config, world, max_grad_norm, bf16)
        case _:
            assert_never(config)
