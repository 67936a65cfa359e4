"""One row spoils a step: every rank skips that step and no other, and the ranks stay the same."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, tokenizer, write_rows, zero
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from distributed_ft.artifacts import RunDirectory, read_json_lines
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.order import Order
from distributed_ft.errors import TrainingError
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit
from distributed_ft.train.preflight import data_for
from distributed_ft.train.run import open_run
from distributed_ft.train.signals import StopRequest

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "fsdp": {"type": "fsdp"},
    "zero1": zero(1),
    "zero3": zero(3),
}


def whole(parameter: Any) -> torch.Tensor:
    """All of it, as this rank sees it."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def train_each(world: World, configs: dict[str, RunConfig]) -> dict[str, tuple[str, float]]:
    """What was raised, and the sum of this rank's view of the trained parameters."""
    outcomes = {}
    for case, config in configs.items():
        directory = RunDirectory(Path(config.runs_dir) / config.name)
        run = open_run(config, directory, data_for(config, directory), world, StopRequest())
        raised = ""
        try:
            fit(run)
        except TrainingError as error:
            raised = str(error)
        trained = [p for p in run.token_loss.parameters() if p.requires_grad]
        outcomes[case] = raised, math.fsum(float(whole(p).double().sum()) for p in trained)
    return outcomes


@pytest.fixture
def poisoned(bases: Callable[..., Path], tmp_path: Path) -> Path:
    """A base whose embedding of `Z` is infinite."""
    base = shutil.copytree(bases("llama"), tmp_path / "poisoned")
    model = AutoModelForCausalLM.from_pretrained(base)
    (token,) = tokenizer().encode("Z")
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.inf
    model.save_pretrained(base)
    return base


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """30 rows, one of which says `Z`."""
    path = write_rows(tmp_path / "rows.jsonl", 30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[7]["messages"][0]["content"] += "Z"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_step_with_a_spoilt_row_is_skipped_by_all_ranks_and_the_run_goes_on(
    tmp_path: Path, poisoned: Path, rows: Path
) -> None:
    configs = {}
    for strategy, settings in STRATEGIES.items():
        optim = {"max_steps": 16, "global_batch_size": 4}
        configs[strategy] = make_config(poisoned, rows, tmp_path / strategy, strategy=settings, optim=optim)
        prepare_run(configs[strategy], 2)
    first, second = run_ranks(2, train_each, configs=configs)
    for strategy, config in configs.items():
        assert first[strategy] == second[strategy], "the ranks differ"
        raised, total = first[strategy]
        assert not raised
        assert math.isfinite(total)
        directory = RunDirectory(Path(config.runs_dir) / config.name)
        lines = read_json_lines(directory.metrics)
        assert [line["step"] for line in lines] == list(range(1, 17))
        spoilt = {line["step"] for line in lines if line.get("skipped")}
        order = Order.of(config, data_for(config, directory))
        assert spoilt == {step + 1 for step in range(16) if "row-7" in order.sample_ids(step)}
        assert 2 <= len(spoilt) <= 4
        for line in lines:
            assert (line["loss"] is None) == (line["step"] in spoilt)
            assert (line["grad_norm"] is None) == (line["step"] in spoilt)


def test_too_many_in_a_row_end_the_run_on_every_rank_with_the_same_diagnosis(
    tmp_path: Path, poisoned: Path, rows: Path
) -> None:
    poison = [json.loads(line) for line in rows.read_text().splitlines()]
    for row in poison:
        row["messages"][0]["content"] += "Z"
    rows.write_text("".join(json.dumps(row) + "\n" for row in poison))
    configs = {}
    for strategy, settings in STRATEGIES.items():
        optim = {"max_steps": 16, "global_batch_size": 4, "max_skipped_steps": 3}
        configs[strategy] = make_config(poisoned, rows, tmp_path / strategy, strategy=settings, optim=optim)
        prepare_run(configs[strategy], 2)
    first, second = run_ranks(2, train_each, configs=configs)
    assert first == second
    for strategy, config in configs.items():
        assert "stopped at step 3: the loss was not finite for 3 steps in a row" in first[strategy][0]
        directory = RunDirectory(Path(config.runs_dir) / config.name)
        assert len(read_json_lines(directory.metrics)) == 3
        assert directory.newest_complete() is None
