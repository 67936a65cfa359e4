"""Where tensors live, and how gradients meet: the seam between the loop and DDP, FSDP2 and ZeRO.

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

from distributed_ft.config import deepspeed
from distributed_ft.config.schema import DdpStrategy, DeepspeedStrategy, FsdpStrategy, LauncherStrategy, RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.model.weights import Weights
from distributed_ft.parallel.world import World

MakeOptimizer = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True)
class StepInfo:
    """What an optimizer step did. grad_norm: global L2 norm before clipping; skipped: nothing was updated."""

    grad_norm: float
    skipped: bool


class Strategy(Protocol):
    """The places where the strategies really differ."""

    def setup(self, module: nn.Module, content: Weights | None, make_optimizer: MakeOptimizer) -> nn.Module:
        """Place and shard `module` (a TokenLoss), fill it with `content` if it was built without memory, make the
        optimizer over what this rank holds; the module to call. A collective."""
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


def make_strategy(config: RunConfig, world: World) -> Strategy:
    """The strategy of a run; one process with `ddp` is plain training.

    Raises ConfigError when the mesh does not fit the world, or DeepSpeed's knobs are not right.
    """
    from distributed_ft.parallel.ddp import Ddp
    from distributed_ft.parallel.deepspeed import Deepspeed, knob_problems
    from distributed_ft.parallel.fsdp import Fsdp

    match config.strategy:
        case DdpStrategy():
            return Ddp(world, config.optim.max_grad_norm)
        case FsdpStrategy():
            return Fsdp(config.strategy, world, config.optim.max_grad_norm, config.model.dtype == "bf16")
        case DeepspeedStrategy():
            problems = knob_problems(config.strategy.config)
            if problems:
                raise ConfigError("\n".join(problems))
            return Deepspeed(deepspeed.read(config.strategy.config), config.optim, world)
        case LauncherStrategy():
            raise AssertionError("config.launched settles it before a world is formed")
        case _:
            assert_never(config.strategy)
