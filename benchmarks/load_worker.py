"""A rank of `benchmarks.load_memory`: builds, shards and fills a model, and reports what that took."""

import ctypes
import sys
from pathlib import Path

import torch

from benchmarks.harness import memory_bytes, report
from distributed_ft.config.load import load_resolved
from distributed_ft.config.schema import RunConfig
from distributed_ft.model import methods
from distributed_ft.model.load import DTYPES, load_model, quiet_libraries
from distributed_ft.model.quantized import quantization
from distributed_ft.model.token_loss import TokenLoss
from distributed_ft.parallel.strategy import make_strategy
from distributed_ft.parallel.world import World, form_world, leave, rank_from_environment
from distributed_ft.train.optim import make_optimizer
from distributed_ft.train.run import build


def build_whole(config: RunConfig, world: World) -> TokenLoss:
    """What a trainer does that does not stream: transformers loads everything on every rank."""
    compute = DTYPES[config.model.dtype]
    bits = quantization(config.method, compute)
    model = load_model(config.model, methods.storage_dtype(config.method, compute), world.device, bits)
    torch.manual_seed(config.seed)
    return TokenLoss(methods.apply(model, config.method))


def main() -> None:
    config, how, out = load_resolved(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    quiet_libraries()
    world = form_world(expected_size=rank_from_environment()[1])
    strategy = make_strategy(config, world)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = memory_bytes("VmRSS")
    if how == "whole":
        token_loss, content = build_whole(config, world), None
    else:
        token_loss, content = build(config, world)
    strategy.setup(token_loss, content, lambda module: make_optimizer(module, config.optim))
    peak = memory_bytes("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)
    report(out, {"peak": peak - before, "held": memory_bytes("VmRSS") - before})


if __name__ == "__main__":
    main()
    leave(0)
