"""Moments in 8 bits: bitsandbytes' own numbers on each rank's shard, little memory, and an exact resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows
from support.training import StopAfter, open_here
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from distributed_ft.artifacts import RunDirectory, read_json_lines, sha256_of
from distributed_ft.config.schema import OptimConfig, RunConfig
from distributed_ft.errors import CheckpointError, Stopped
from distributed_ft.parallel.update import clip_and_step
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit
from distributed_ft.train.optim import make_optimizer

STEPS = 10
SHAPES = {"even": (128, 96), "uneven": (101, 90), "small": (6, 8), "of one rank": (1, 50), "vector": (30,)}
OPTIM = OptimConfig(name="adamw_8bit", weight_decay=0.1, betas=(0.8, 0.95))


def whole(name: str, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + len(name))
    return torch.randn(SHAPES[name], generator=generator)


def shards_like_bitsandbytes(world: World) -> dict[str, float]:
    """Largest difference to bitsandbytes on the chunks themselves, by parameter, after three steps without clipping."""
    mesh = init_device_mesh("cpu", (world.size,))
    module = nn.Module()
    for name in SHAPES:
        sharded = distribute_tensor(whole(name, 0), mesh, [Shard(0)])
        module.register_parameter(name.replace(" ", "_"), nn.Parameter(sharded))
    optimizer = make_optimizer(module, OPTIM)
    chunks = {name: [*whole(name, 0).chunk(world.size), torch.empty(0)][world.rank].clone() for name in SHAPES}
    mine = {name: nn.Parameter(chunk) for name, chunk in chunks.items() if chunk.numel()}
    groups = [
        {"params": [p for n, p in mine.items() if (len(SHAPES[n]) == 1) == vector], "weight_decay": decay}
        for vector, decay in ((False, 0.1), (True, 0.0))
    ]
    reference = AdamW8bit(groups, lr=1e-3, betas=OPTIM.betas)
    for step in range(1, 4):
        for name in SHAPES:
            gradient = whole(name, step)
            module.get_parameter(name.replace(" ", "_")).grad = distribute_tensor(gradient, mesh, [Shard(0)])
            if name in mine:
                mine[name].grad = gradient.chunk(world.size)[world.rank].clone()
        clip_and_step(optimizer, None, 1e-3 * step, usable=True)
        for group in reference.param_groups:
            group["lr"] = 1e-3 * step
        reference.step()
    ours = {name: module.get_parameter(name.replace(" ", "_")).to_local() for name in mine}
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
    return {name: float((ours[name] - mine[name]).abs().max().detach()) for name in mine}


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_shard_is_updated_as_bitsandbytes_updates_it(world_size: int) -> None:
    for rank, differences in enumerate(run_ranks(world_size, shards_like_bitsandbytes)):
        assert differences == dict.fromkeys([n for n in SHAPES if n != "of one rank" or rank == 0], 0.0)


def train(world: World, configs: dict[str, RunConfig], steps: int = STEPS + 1) -> dict[str, int | str]:
    """Bytes of moments on this rank, or what is refused, by case."""
    outcome: dict[str, int | str] = {}
    for case, config in configs.items():
        try:
            run = open_here(world, config, StopAfter(steps))
            fit(run)
        except Stopped:
            pass
        except CheckpointError as error:
            outcome[case] = str(error)
            continue
        optimizer: Any = run.strategy.optimizer
        tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim]
        outcome[case] = sum(t.nbytes for t in (getattr(t, "_local_tensor", t) for t in tensors))
    return outcome


@pytest.fixture
def make(tmp_path: Path, bases: Callable[..., Path]) -> Callable[..., RunConfig]:
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    base = bases("llama", hidden_size=96, intermediate_size=192)

    def config(name: str, strategy: str, optimizer: str = "adamw_8bit", **mesh: int) -> RunConfig:
        made = make_config(
            base,
            rows,
            tmp_path / name,
            method={"type": "full"},
            strategy={"type": strategy, **mesh},
            optim={"name": optimizer, "lr": 1e-3, "max_steps": STEPS, "global_batch_size": 4},
        )
        prepare_run(made, 2 * mesh.get("dp_replicate", 1))
        return made

    return config


def losses(config: RunConfig) -> list[float]:
    return [line["loss"] for line in read_json_lines(Path(config.runs_dir) / "run" / "metrics.jsonl")]


def weights(config: RunConfig) -> str:
    newest = RunDirectory(Path(config.runs_dir) / "run").newest_complete()
    assert newest is not None
    assert newest.step == STEPS
    return sha256_of(newest.model / "model.safetensors")


def test_it_learns_like_fp32_moments_in_less_than_half_of_their_memory_and_resumes_exactly(
    make: Callable[..., RunConfig],
) -> None:
    strategies = ("ddp", "fsdp")
    eight, parts = ({s: make(f"{s} {name}", s) for s in strategies} for name in ("whole", "parts"))
    exact = {s: make(f"{s} exact", s, "adamw") for s in strategies}
    held = run_ranks(2, train, configs={**eight, **{f"exact {s}": c for s, c in exact.items()}})
    for steps in (4, 3, STEPS):
        run_ranks(2, train, configs=parts, steps=steps)
    for strategy in strategies:
        torch.testing.assert_close(
            torch.tensor(losses(eight[strategy])), torch.tensor(losses(exact[strategy])), rtol=2e-2, atol=0
        )
        assert losses(eight[strategy]) != losses(exact[strategy])
        assert losses(parts[strategy]) == losses(eight[strategy])
        assert weights(parts[strategy]) == weights(eight[strategy])
        for rank in held:
            assert rank[strategy] < rank[f"exact {strategy}"] / 2


def test_copies_of_shards_resume_exactly_too(make: Callable[..., RunConfig]) -> None:
    whole, parts = ({"": make(name, "fsdp", dp_replicate=2)} for name in ("whole", "parts"))
    run_ranks(4, train, configs=whole)
    for steps in (4, STEPS):
        run_ranks(4, train, configs=parts, steps=steps)
    assert losses(parts[""]) == losses(whole[""])
    assert weights(parts[""]) == weights(whole[""])


def test_copies_go_on_in_a_world_of_another_size_and_shards_say_why_they_do_not(make: Callable[..., RunConfig]) -> None:
    configs = {strategy: make(strategy, strategy) for strategy in ("ddp", "fsdp")}
    run_ranks(2, train, configs=configs, steps=4)
    before = losses(configs["fsdp"])
    (outcome,) = run_ranks(1, train, configs=configs)
    assert isinstance(outcome["ddp"], int)
    assert len(losses(configs["ddp"])) == STEPS
    assert "belong to the 2 shards that they were trained in" in str(outcome["fsdp"])
    assert "and now there are 1; continue with 2 processes" in str(outcome["fsdp"])
    assert losses(configs["fsdp"]) == before, "nothing was trained"
