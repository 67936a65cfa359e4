"""What only ZeRO makes hard: state that is offloaded or has no step count, and buffers that nobody partitions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows, zero
from support.training import StopAfter, open_here

from distributed_ft.artifacts import read_json_lines
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import Stopped
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit


def train_until(world: World, config: RunConfig, steps: int) -> None:
    try:
        fit(open_here(world, config, StopAfter(steps)))
    except Stopped:
        assert steps < config.optim.max_steps


def persistent_buffers(world: World, config: RunConfig) -> dict[str, torch.Tensor]:
    """By their name in the base."""
    model: Any = open_here(world, config).token_loss.model
    stored = model.state_dict()
    return {n.removeprefix("base_model.model."): b.clone() for n, b in model.named_buffers() if n in stored}


@pytest.mark.parametrize(
    ("stage", "offloaded", "optimizer"),
    [
        (3, True, "sgd"),  # momentum, and no count of steps
        pytest.param(3, True, "adamw", marks=pytest.mark.matrix),
        pytest.param(2, True, "adamw", marks=pytest.mark.matrix),
        pytest.param(2, True, "sgd", marks=pytest.mark.matrix),
        pytest.param(1, False, "sgd", marks=pytest.mark.matrix),
    ],
)
def test_offloaded_state_and_momentum_are_resumed(
    tmp_path: Path, bases: Callable[..., Path], stage: int, offloaded: bool, optimizer: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 22)
    offload = {"offload_optimizer": {"device": "cpu"}} if offloaded else {}
    (tmp_path / "knobs.json").write_text(json.dumps({"zero_optimization": {"stage": stage, **offload}}))
    strategy = {"type": "deepspeed", "config": str(tmp_path / "knobs.json")}
    optim = {"name": optimizer, "lr": {"sgd": 0.05, "adamw": 2e-3}[optimizer], "max_grad_norm": None}
    curves = []
    for place, worlds in {"stayed": [2], "moved": [2, 3]}.items():
        config = make_config(
            bases("llama"),
            rows,
            tmp_path / place,
            strategy=strategy,
            optim={**optim, "max_steps": 6, "global_batch_size": 4},
        )
        run = prepare_run(config, 2)
        for size in worlds:
            run_ranks(size, train_until, config=config, steps=100 if size == worlds[-1] else 3)
        curves.append(torch.tensor([(line["loss"], line["grad_norm"]) for line in read_json_lines(run.metrics)]))
    assert len(curves[0]) == 6
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-5, atol=0)


def test_every_rank_has_the_buffers_of_the_base(tmp_path: Path, bases: Callable[..., Path]) -> None:
    base = bases("apertus")  # its activations have constants that are stored with the weights
    config = make_config(base, write_rows(tmp_path / "rows.jsonl", 8), tmp_path, strategy=zero(3))
    prepare_run(config, 2)
    expected = load_file(base / "model.safetensors")
    for found in run_ranks(2, persistent_buffers, config=config):
        assert len(found) == 4
        for name, buffer in found.items():
            assert torch.equal(buffer, expected[name]), name
