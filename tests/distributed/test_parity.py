"""One process, DDP, FSDP2, hybrid sharding and ZeRO compute the same training run."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows, zero
from support.training import open_here
from torch.distributed.tensor import DTensor

from distributed_ft.artifacts import read_json_lines
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.batches import micro_batches
from distributed_ft.data.order import Order
from distributed_ft.parallel.deepspeed import Deepspeed
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit
from distributed_ft.train.preflight import data_for

WORLDS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"type": "ddp"}),
    "one process, fsdp": (1, {"type": "fsdp"}),
    "2 ddp": (2, {"type": "ddp"}),
    "2 fsdp": (2, {"type": "fsdp"}),
    "4 fsdp": (4, {"type": "fsdp"}),
    "2 x 2 fsdp": (4, {"type": "fsdp", "dp_replicate": 2}),
    "one process, zero3": (1, zero(3)),
    "2 zero1": (2, zero(1)),
    "2 zero2": (2, zero(2)),
    "2 zero3": (2, zero(3)),
    "2 fsdp offload": (2, {"type": "fsdp", "cpu_offload": True}),
    "2 zero3 offload": (2, zero("3_offload")),
}
OPTIM = {"weight_decay": 0.1, "max_grad_norm": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"optim": OPTIM},
    "full": {"method": {"type": "full"}, "optim": {**OPTIM, "lr": 1e-3}, "model": {"gradient_checkpointing": "full"}},
    "sgd": {"method": {"type": "full"}, "optim": {**OPTIM, "name": "sgd", "lr": 0.05}},
    "qlora": {"method": {"type": "qlora", "rank": 4, "alpha": 8}, "optim": OPTIM},
    "qlora bf16": {
        "method": {"type": "qlora", "rank": 4, "alpha": 8},
        "optim": {**OPTIM, "max_steps": 12},
        "model": {"dtype": "bf16"},
    },
    "lora bf16": {"optim": {**OPTIM, "max_steps": 12}, "model": {"dtype": "bf16"}},
    "full bf16": {
        "method": {"type": "full"},
        "optim": {**OPTIM, "lr": 1e-3, "max_steps": 12},
        "model": {"dtype": "bf16"},
    },
}
SHORT = {**OPTIM, "max_steps": 10}
THIN: dict[str, dict[str, Any]] = {  # ten steps on fewer worlds
    "dora, pissa, lora+": {
        "method": {"dora": True, "init": "pissa", "lora_plus": 4.0},
        "optim": {**SHORT, "lr": 2e-3},
    },
    "dora over nf4": {"method": {"type": "qlora", "rank": 4, "alpha": 8, "dora": True}, "optim": SHORT},
    "prefix": {"method": {"type": "prefix", "num_virtual_tokens": 5}, "optim": {**SHORT, "lr": 0.05}},
    "prompt": {
        "method": {"type": "prompt", "num_virtual_tokens": 5},
        "optim": {**SHORT, "lr": 0.05},
        "model": {"gradient_checkpointing": "full"},
    },
    "adapter": {"method": {"type": "adapter", "adapter": "houlsby", "reduction_factor": 4}, "optim": SHORT},
    "int8": {"method": {"type": "qlora", "rank": 4, "alpha": 8, "quantization": "int8"}, "optim": SHORT},
}
CASES |= THIN
TIED = {"full", "full bf16"}
ALONE = "one process"
IN_CI = {  # a diagonal; the rest by `make test-matrix`
    "lora": ("2 ddp", "2 x 2 fsdp", "2 fsdp offload", "2 zero2"),
    "full": ("2 fsdp", "2 zero3"),
    "sgd": ("2 zero1",),
    "qlora": ("2 fsdp", "2 zero3"),
    "full bf16": ("2 fsdp",),
    "qlora bf16": ("2 zero3",),
    "dora, pissa, lora+": ("2 fsdp",),
    "dora over nf4": ("2 fsdp",),
    "prefix": ("2 zero3",),
    "prompt": ("2 fsdp",),
    "adapter": ("2 fsdp",),
    "int8": ("2 ddp",),
}


def worlds_of(case: str) -> list[str]:
    """Where a case is trained beside one process."""
    if case == "dora over nf4":
        return ["2 ddp", "2 fsdp", "2 x 2 fsdp", "2 zero1", "2 zero2"]
    few = ("2 ddp", "2 fsdp", "2 x 2 fsdp", "2 zero1", "2 zero2", "2 zero3")
    if case == "int8":
        return ["2 ddp"]
    return [where for where in WORLDS if where != ALONE and (where in few or (case not in THIN and "bf16" not in case))]


CELLS = [
    pytest.param(case, where, marks=() if where in IN_CI.get(case, ()) else pytest.mark.matrix)
    for case in CASES
    for where in worlds_of(case)
]
SHARED_IN_CI = {("qlora", "fsdp"), ("full", "zero3")}


def train_all(world: World, configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        fit(open_here(world, config))


def step_and_measure(world: World, config: RunConfig) -> dict[str, int]:
    """Bytes on this rank: parameters and optimizer state after a step, gradients in the middle of the next one."""
    run = open_here(world, config)
    first, second, *_ = micro_batches(run.order, 0, world.rank, world.size, 1)
    run.strategy.sync_gradients(True)
    run.strategy.backward(run.model(first) / 100)
    run.strategy.step(1e-3, usable=True)
    run.strategy.sync_gradients(False)
    run.strategy.backward(run.model(second) / 100)
    parameters = list(run.token_loss.parameters())
    found = {"parameters": held(parameters)}
    if isinstance(run.strategy, Deepspeed):
        zero = run.strategy.engine.optimizer
        states = list(zero.optimizer.state.values())
        assert states, "one flat tensor for all"
        # ZeRO-3 may keep its fp32 weights apart from those of the forward pass: they count
        found["parameters"] += held(
            [
                t
                for t in zero.fp32_partitioned_groups_flat
                if t.data_ptr() not in {p.ds_tensor.data_ptr() for p in parameters if p.requires_grad}
            ]
        )
    else:
        states = list(run.strategy.optimizer.state.values())
        trained = sum(p.requires_grad for p in parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(states) == len(gradients) == trained
        found["gradients"] = held(gradients)
    moments = [v for state in states for v in state.values() if v.ndim]
    assert len(moments) == 2 * len(states), "AdamW has two moments a parameter"
    return {**found, "moments": held(moments)}


def held(tensors: list[Any]) -> int:
    """Bytes of the storages behind `tensors` on this rank; of a parameter of ZeRO-3, its part and what is gathered."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    local += [t.ds_tensor for t in tensors if hasattr(t, "ds_tensor")]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose sequences, in batches of 8, leave a rank of 4 without any in the last batch of an epoch. Three of
    them hold a truncated prompt only; in a micro-batch of their own these have no target at all."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 46, num_overlong=3)


@pytest.fixture(scope="module")
def curve(
    tmp_path_factory: pytest.TempPathFactory, bases: Callable[..., Path], rows: Path
) -> Callable[[str, str], torch.Tensor]:
    """`curve(case, where)`: (steps, 2), loss and gradient norm; trained when first asked for."""
    folder = tmp_path_factory.mktemp("parity")

    @cache
    def trained(case: str, where: str) -> torch.Tensor:
        size, strategy = WORLDS[where]
        base = bases("qwen2", tie_word_embeddings=True) if case in TIED else bases("llama")
        config = make_config(base, rows, folder / f"{case} {where}", **CASES[case], strategy=strategy)
        run = prepare_run(config, size)
        run_ranks(size, train_all, configs={"": config})
        lines = [line for line in read_json_lines(run.metrics) if "loss" in line]
        return torch.tensor([(line["loss"], line["grad_norm"]) for line in lines])

    return trained


def test_the_batches_have_what_makes_parity_hard(tmp_path: Path, bases: Callable[..., Path], rows: Path) -> None:
    config = make_config(bases("llama"), rows, tmp_path)
    order = Order.of(config, data_for(config, prepare_run(config)))
    sizes = [len(order.global_batch(step)) for step in range(order.steps_per_epoch)]
    assert sizes[:-1] == [8, 8, 8]
    assert 0 < sizes[-1] < 4, "some rank of 4 has no sequence in the last batch"
    micros = [m for s in range(4) for r in range(4) for m in micro_batches(order, s, r, 4, 1)]
    assert sum(m.num_supervised == 0 and m.num_tokens > 1 for m in micros) == 3
    assert sum(m.num_tokens == 1 for m in micros) == 4 - sizes[-1]
    assert any(len(m.cu_seqlens) > 2 for m in micros), "several documents in a sequence"


@pytest.mark.parametrize(("case", "where"), CELLS)
def test_losses_and_gradient_norms_equal_those_of_one_process(
    curve: Callable[[str, str], torch.Tensor], case: str, where: str
) -> None:
    expected, got = curve(case, ALONE), curve(case, where)
    assert got.shape == (CASES[case]["optim"].get("max_steps", 30), 2)
    torch.testing.assert_close(got, expected, rtol=2e-2 if "bf16" in case else 1e-5, atol=0)


@pytest.mark.parametrize("case", list(CASES))
def test_the_runs_compared_did_learn(curve: Callable[[str, str], torch.Tensor], case: str) -> None:
    losses, norms = curve(case, ALONE).unbind(1)
    assert losses[-1] < (0.98 if len(losses) < 30 else 0.8) * losses[0]
    if len(losses) == 30:
        assert (norms > OPTIM["max_grad_norm"]).sum() >= 5, "and were clipped"


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        pytest.param(method, strategy, marks=() if (method, strategy) in SHARED_IN_CI else pytest.mark.matrix)
        for method in ("full", "lora", "qlora")
        for strategy in ("fsdp", "zero3")
    ],
)
def test_each_rank_holds_its_share_of_parameters_moments_and_gradients(
    tmp_path: Path, bases: Callable[..., Path], rows: Path, method: str, strategy: str
) -> None:
    # by default ZeRO-3 leaves tensors of less than 100,000 numbers on every rank: here that would be all of them
    knobs = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "knobs.json").write_text(json.dumps(knobs))
    chosen = {"fsdp": {"type": "fsdp"}, "zero3": {"type": "deepspeed", "config": str(tmp_path / "knobs.json")}}[
        strategy
    ]
    whole: dict[str, int] = {}
    for size in (1, 2, 4):
        config = make_config(bases("llama"), rows, tmp_path / str(size), method={"type": method}, strategy=chosen)
        prepare_run(config, size)
        for held_here in run_ranks(size, step_and_measure, config=config):
            whole = whole or held_here
            for what, number in held_here.items():
                assert number <= (1 / size + 0.05) * whole[what], f"{what} on {size} ranks: {number} of {whole[what]}"
