"""Recomputing layers changes no loss, whatever is trained and however it is sharded."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows
from support.training import open_here

from distributed_ft.artifacts import read_json_lines
from distributed_ft.config.schema import Recompute, RunConfig
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit

CASES = [(strategy, method) for strategy in ("ddp", "fsdp") for method in ("full", "lora", "qlora")]


def train_all(world: World, configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        fit(open_here(world, config))


def test_losses_and_gradient_norms_are_those_without_recomputation(tmp_path: Path, bases: Callable[..., Path]) -> None:
    """With dropout in the adapters, whose random numbers must be drawn again."""
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    base = bases("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    configs = {}
    for strategy, method in CASES:
        for mode in get_args(Recompute):
            configs[f"{strategy} {method} {mode}"] = make_config(
                base,
                rows,
                tmp_path / f"{strategy} {method} {mode}",
                model={"gradient_checkpointing": mode},
                method={"type": method} if method == "full" else {"type": method, "rank": 4, "dropout": 0.1},
                strategy={"type": strategy},
                optim={"max_steps": 4, "global_batch_size": 4},
            )
            prepare_run(configs[f"{strategy} {method} {mode}"], 2)
    run_ranks(2, train_all, configs=configs)
    for strategy, method in CASES:
        none, *others = (curve(configs[f"{strategy} {method} {mode}"]) for mode in get_args(Recompute))
        for other in others:
            torch.testing.assert_close(other, none, rtol=1e-6, atol=0, msg=lambda m, c=(strategy, method): f"{c}: {m}")


def curve(config: RunConfig) -> torch.Tensor:
    """(steps, 2): loss and gradient norm."""
    lines = read_json_lines(Path(config.runs_dir) / "run" / "metrics.jsonl")
    return torch.tensor([(line["loss"], line["grad_norm"]) for line in lines], dtype=torch.float64)
