"""The same code on a GPU: near the CPU's fp32 numbers, isolated documents, and a resume that changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from support.tiny import VOCAB, make_config, make_model, prepare_run, write_rows
from support.training import StopAfter, open_here

from distributed_ft.artifacts import RunDirectory, read_json_lines, sha256_of
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.batches import MicroBatch
from distributed_ft.errors import Stopped
from distributed_ft.model.attention import FLEX, PACKED_SDPA
from distributed_ft.model.token_loss import TokenLoss
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 12


def train(world: World, config: RunConfig, steps: int = STEPS) -> str:
    """Train for some steps; the kind of device that it ran on."""
    run = open_here(world, config, StopAfter(steps))
    try:
        fit(run)
    except Stopped:
        assert run.state.step < run.total_steps
    return next(run.token_loss.parameters()).device.type


def losses(config: RunConfig) -> list[float]:
    return [line["loss"] for line in read_json_lines(Path(config.runs_dir) / "run" / "metrics.jsonl")]


def adapter(config: RunConfig) -> str:
    newest = RunDirectory(Path(config.runs_dir) / "run").newest_complete()
    assert newest is not None
    assert newest.step == STEPS
    return sha256_of(newest.model / "adapter_model.safetensors")


@pytest.fixture
def make(tmp_path: Path, bases: Callable[..., Path]) -> Callable[..., RunConfig]:
    rows = write_rows(tmp_path / "rows.jsonl", 40)

    def config(name: str, dtype: str, strategy: str, dropout: float = 0.0) -> RunConfig:
        made = make_config(
            bases("qwen3"),
            rows,
            tmp_path / name,
            model={"dtype": dtype},
            method={"dropout": dropout},
            strategy={"type": strategy},
            optim={"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2},
        )
        prepare_run(made)
        return made

    return config


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_losses_are_near_those_of_fp32_on_the_cpu(make: Callable[..., RunConfig], dtype: str, strategy: str) -> None:
    gpu, cpu = make("gpu", dtype, strategy), make("cpu", "fp32", "ddp")
    assert run_ranks(1, train, config=gpu) == [DEVICE]
    assert run_ranks(1, train, on_cpu=True, config=cpu) == ["cpu"]
    tolerance = {"fp32": 1e-3, "bf16": 3e-2}[dtype]  # fp32 on a GPU may multiply in another order
    torch.testing.assert_close(torch.tensor(losses(gpu)), torch.tensor(losses(cpu)), rtol=tolerance, atol=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stopped_and_resumed_run_ends_in_the_same_adapter(make: Callable[..., RunConfig], strategy: str) -> None:
    """With dropout, so that the GPU's random state matters."""
    whole, parts = (make(name, "bf16", strategy, dropout=0.1) for name in ("whole", "parts"))
    run_ranks(1, train, config=whole)
    for steps in (5, 3, STEPS):
        run_ranks(1, train, config=parts, steps=steps)
    assert losses(parts) == losses(whole)
    assert adapter(parts) == adapter(whole)


@pytest.mark.parametrize("implementation", [PACKED_SDPA, "eager", FLEX])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_document_does_not_see_the_one_before_it(implementation: str, autocast: torch.dtype | None) -> None:
    model = make_model("mistral", head_dim=16).to(DEVICE)  # flex wants 16 or more
    model.set_attn_implementation(implementation)
    loss = TokenLoss(model, autocast)
    second = torch.arange(20, 60)

    def second_loss(first: torch.Tensor) -> float:
        positions = torch.arange(30, 69)  # of the second document, but for its last token
        batch = MicroBatch(
            input_ids=torch.cat([first, second])[None],
            position_ids=torch.cat([torch.arange(30), torch.arange(40)])[None],
            cu_seqlens=torch.tensor([0, 30, 70], dtype=torch.int32),
            max_seqlen=40,
            supervised=positions,
            targets=second[1:],
        )
        return float(loss(batch.to(DEVICE)).detach())

    assert second_loss(torch.full((30,), 5)) == second_loss(torch.arange(VOCAB - 30, VOCAB))


@pytest.mark.parametrize(
    ("architecture", "reference"), [("llama", PACKED_SDPA), ("mistral", PACKED_SDPA), ("gemma2", "eager")]
)
def test_flex_gives_the_gradients_of_the_others_for_packs_of_any_length(architecture: str, reference: str) -> None:
    model = make_model(architecture, head_dim=16).to(DEVICE)
    loss = TokenLoss(model)
    for lengths in ([40], [30, 1, 50], [7, 300], [128, 128]):
        total = sum(lengths)
        ids, at = 3 + torch.arange(total) % 250, torch.arange(total - 1)
        batch = MicroBatch(
            input_ids=ids[None],
            position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            max_seqlen=max(lengths),
            supervised=at,
            targets=ids[at + 1],
        ).to(DEVICE)
        gradients = []
        for implementation in (FLEX, reference):
            model.set_attn_implementation(implementation)
            model.zero_grad()
            loss(batch).backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_moments_in_8_bits_learn_like_fp32_and_resume_exactly(
    tmp_path: Path, bases: Callable[..., Path], strategy: str, optimizer: str
) -> None:
    """With matrices of 100,000 elements and more, which are paged."""
    pytest.importorskip("bitsandbytes")
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    base = bases("qwen3", hidden_size=384, intermediate_size=512)

    def config(name: str, optimizer: str) -> RunConfig:
        optim = {"name": optimizer, "lr": 3e-4, "max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2}
        made = make_config(
            base, rows, tmp_path / name, method={"type": "full"}, strategy={"type": strategy}, optim=optim
        )
        prepare_run(made)
        return made

    exact, whole, parts = config("exact", "adamw"), config("whole", optimizer), config("parts", optimizer)
    for made in (exact, whole):
        run_ranks(1, train, config=made)
    for steps in (5, 3, STEPS):
        run_ranks(1, train, config=parts, steps=steps)
    assert losses(parts) == losses(whole)
    torch.testing.assert_close(torch.tensor(losses(whole)), torch.tensor(losses(exact)), rtol=3e-2, atol=0)
