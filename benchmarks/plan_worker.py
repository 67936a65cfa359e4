"""A rank of `benchmarks.plan_memory`: trains two real steps on full sequences, and reports what the allocator gave out.

On a CPU torch's allocator says to the profiler what it has given out in all, with every allocation; on a GPU torch
keeps the maximum. Neither knows of the planner: its ledger counts tensors, and here kernels allocate what they like.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.harness import report
from distributed_ft.config.load import load_resolved
from distributed_ft.config.schema import RunConfig
from distributed_ft.model.load import quiet_libraries
from distributed_ft.parallel.strategy import make_strategy
from distributed_ft.parallel.world import World, form_world, leave, rank_from_environment
from distributed_ft.plan.measure import full_micro_batch, micro_batches_of
from distributed_ft.train.optim import make_optimizer
from distributed_ft.train.run import build

STEPS = 2


def train(config: RunConfig, world: World) -> None:
    """What `fit` does with memory."""
    strategy = make_strategy(config, world)
    token_loss, content = build(config, world)
    module = strategy.setup(token_loss, content, lambda m: make_optimizer(m, config.optim))
    del content
    micro = full_micro_batch(config.data.seq_len, config.optim.micro_batch_size).to(world.device)
    passes = micro_batches_of(config, world.size)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with record_function("training"):
        for _ in range(STEPS):
            for number in range(passes):
                strategy.sync_gradients(number == passes - 1)
                share = module(micro) / micro.num_supervised
                strategy.backward(share)
            strategy.step(config.optim.lr, usable=True)


def allocated(trace: Path) -> int:
    """The most that torch's allocator of host memory had given out while it trained."""
    events = json.loads(trace.read_text())["traceEvents"]
    begin = next(event["ts"] for event in events if event.get("name") == "training")
    return max(int(e["args"]["Total Allocated"]) for e in events if e.get("name") == "[memory]" and e["ts"] >= begin)


def main() -> None:
    config, out = load_resolved(sys.argv[1]), Path(sys.argv[2])
    quiet_libraries()
    world = form_world(expected_size=rank_from_environment()[1])
    if world.device.type == "cuda":
        train(config, world)
        report(out, {"peak": torch.cuda.max_memory_allocated(world.device)})
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(config, world)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        report(out, {"peak": allocated(trace)})


if __name__ == "__main__":
    main()
    leave(0)
