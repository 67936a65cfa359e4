"""Several run directories, trained one after the other in one process."""

import gc
from collections.abc import Callable
from pathlib import Path

from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows

from distributed_ft.artifacts import RunDirectory, read_json_lines
from distributed_ft.config.load import load_resolved
from distributed_ft.model.token_loss import TokenLoss
from distributed_ft.parallel.world import World
from distributed_ft.train.__main__ import _train_one
from distributed_ft.train.preflight import data_for
from distributed_ft.train.signals import StopRequest
from distributed_ft.train.startup import Startup


def models_left(world: World, paths: list[Path]) -> list[int]:
    """How many models are in memory after each run."""
    left = []
    for run in map(RunDirectory, paths):
        config = load_resolved(run.config)
        _train_one(run, config, data_for(config, run), world, StopRequest(), Startup())
        gc.unfreeze()  # what is frozen is not listed
        gc.collect()
        left.append(sum(isinstance(thing, TokenLoss) for thing in gc.get_objects()))
    return left


def test_a_run_leaves_no_model_in_memory_for_the_next(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    configs = [make_config(bases("llama"), rows, tmp_path, name=name, optim={"max_steps": 2}) for name in "ab"]
    runs = [prepare_run(config) for config in configs]
    assert run_ranks(1, models_left, on_cpu=True, paths=[run.path for run in runs]) == [[0, 0]]
    assert [read_json_lines(run.metrics)[-1]["step"] for run in runs] == [2, 2]
