"""DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and parameters (3) are partitioned over ranks.

The engine clips, updates and zeroes; what resume needs is written and read here, because DeepSpeed's own files fit one
world size, and waiting in its barriers a rank never hears that another's disk is full (docs/adr/0009).
"""

import difflib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor, nn

from distributed_ft.config.deepspeed import Knobs, engine_config, read, stage
from distributed_ft.config.schema import OptimConfig
from distributed_ft.errors import ConfigError, brief
from distributed_ft.model.token_loss import TokenLoss
from distributed_ft.model.weights import Weights
from distributed_ft.parallel import zero_state
from distributed_ft.parallel.fill import fill, fill_slot
from distributed_ft.parallel.strategy import MakeOptimizer, StepInfo
from distributed_ft.parallel.world import World


class Deepspeed:
    """See `Strategy`."""

    def __init__(self, knobs: Knobs, optim: OptimConfig, world: World) -> None:
        self.config = engine_config(knobs, optim)
        self.stage = stage(knobs)
        self.world = world
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it asks for it, also where nothing launched us
        self.deepspeed = _library()
        self.module: nn.Module
        self.engine: Any

    def setup(self, module: nn.Module, content: Weights | None, make_optimizer: MakeOptimizer) -> nn.Module:
        if self.stage == 3:
            self._partition(module, content)
            if isinstance(module, TokenLoss):
                module.agree_on_blocks = self._most
        elif content is not None:
            fill(module, content, self.world, self.world.device)
        self.module = module
        self.engine, *_ = self.deepspeed.initialize(
            model=module, optimizer=make_optimizer(module), config=self.config, dist_init_required=False
        )
        engine: nn.Module = self.engine
        return engine

    def sync_gradients(self, on: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(on)

    def backward(self, loss: Tensor) -> None:
        # The engine averages gradients over ranks, and skips a step by itself when one of them is not finite.
        usable = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        self.engine.backward(loss * self.world.size * usable, scale_wrt_gas=False)

    def step(self, lr: float, usable: bool) -> StepInfo:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        self.engine.step()
        if not self.engine.was_step_applied():
            return StepInfo(math.inf, skipped=True)
        return StepInfo(float(self.engine.get_global_grad_norm()), skipped=False)

    def save(self, directory: Path, background: bool) -> Future[Any] | None:
        return zero_state.save(self.engine, self.stage, self.module, self.world, directory, background)

    def load(self, directory: Path) -> None:
        zero_state.load(self.engine, self.stage, self.module, self.world, directory)

    def gather(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        tensors = self.module.get_submodule("model").state_dict(keep_vars=True)
        for name in names:
            tensor = tensors[name]
            whole = [tensor] if hasattr(tensor, "ds_id") else []
            with self.deepspeed.zero.GatheredParameters(whole):
                yield name, tensor.detach().cpu().clone() if self.world.is_main else torch.empty(0)

    def _partition(self, module: nn.Module, content: Weights | None) -> None:
        """Hand the parameters to ZeRO-3 one at a time, so that no rank ever holds more than its parts and one tensor.

        Of the base each rank has read its own part; the adapters, which are the same on every rank, and a model that
        came whole go through DeepSpeed's own conversion, which takes rank 0's values."""
        convert = self.deepspeed.zero.Init(config_dict_or_path=self.config, mem_efficient_linear=False)
        for buffer in module.buffers():
            if not buffer.is_meta:
                buffer.data = buffer.data.to(self.world.device)
        if content is not None:
            for turn, slot in enumerate(content.slots):
                fill_slot(slot, content, self.world, turn)
                if isinstance(slot.tensor, nn.Parameter):
                    parameter: Any = slot.tensor
                    convert._convert_to_deepspeed_param(parameter)
                    parameter.partition()
        convert._convert_to_zero_parameters(module.parameters())

    def _most(self, blocks: int) -> int:
        """The largest number over ranks: each block of the head's logits gathers its weight, and all have to come."""
        if self.world.size == 1:
            return blocks
        tensor = torch.tensor(blocks)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)


def check_knobs(path: str, optim: OptimConfig) -> None:
    """Have DeepSpeed read the knobs in a file, as it will when training starts; names and types are its own.

    Raises ConfigError with a line for everything that is wrong with it."""
    knobs = read(path)
    _library()
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedConfig(engine_config(knobs, optim))
    except ValidationError as error:
        of_zero = error.title == DeepSpeedZeroConfig.__name__
        known = [f.alias or name for name, f in DeepSpeedZeroConfig.model_fields.items()] if of_zero else []
        raise ConfigError("\n".join(f"strategy.config: {path}: {_said(e, known)}" for e in error.errors())) from None
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"strategy.config: {path}: {brief(error)}") from None


def _said(problem: ErrorDetails, known: list[str]) -> str:
    """One thing that pydantic found, on one line."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['input']!r}: {problem['msg']}"
    close = difflib.get_close_matches(key, known, n=1)
    return f"{key}: DeepSpeed knows no such knob" + (f"; did you mean {close[0]!r}?" if close else "; delete it")


def _library() -> Any:
    """deepspeed, set up for this device and quiet."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its way of calling torch's collectives, and its way of asking for a device.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its shared-memory all-reduce would be compiled at start, for half a minute, where there is a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
