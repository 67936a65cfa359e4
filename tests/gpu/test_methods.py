"""Every method on one GPU, in bf16 over torch's flash attention: it learns, and what it saves is what it learned."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows, zero
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from distributed_ft.artifacts import RunDirectory, read_json_lines
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.batches import MicroBatch
from distributed_ft.model.methods import bottleneck
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit
from distributed_ft.train.preflight import data_for
from distributed_ft.train.run import open_run
from distributed_ft.train.signals import StopRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 20
TOLERANCE = 2e-2
RELOADED = 3e-2  # full and PiSSA save in bf16, or for a base in bf16, what was trained in fp32
FLASH = "FLASH_ATTENTION"  # of SDPBackend, whose members cannot be sent to a rank
PROBE = 3 + torch.arange(40)[None]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05, "dtype": "bfloat16"}
LORA = {"type": "lora", "rank": 8, "alpha": 16}
METHODS: dict[str, tuple[dict[str, Any], float]] = {  # and a learning rate
    "full": ({"type": "full"}, 1e-3),
    "lora": (LORA, 5e-3),
    "dora": ({**LORA, "dora": True}, 5e-3),
    "pissa": ({**LORA, "init": "pissa"}, 2e-3),
    "qlora nf4": ({**LORA, "type": "qlora"}, 5e-3),
    "qlora int8": ({**LORA, "type": "qlora", "quantization": "int8"}, 5e-3),
    "prefix": ({"type": "prefix", "num_virtual_tokens": 8}, 5e-2),
    "prompt": ({"type": "prompt", "num_virtual_tokens": 8}, 5e-2),
    "adapter": ({"type": "adapter", "reduction_factor": 8}, 5e-3),
}
BITS: dict[str, dict[str, Any]] = {
    "qlora nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "qlora int8": {"load_in_8bit": True},
}
QUANTIZED = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
ZERO = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
STRATEGIES: dict[str, dict[str, Any]] = {"ddp": {"type": "ddp"}, "fsdp": {"type": "fsdp"}, "zero3": zero(3)}
# What a user does, in a process that knows nothing of us. Arguments: device, bits of the base, the probe, and of each
# model: base, adapter ("" where the base is all), and where its logits go.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
device, bits, probe, asked = json.loads(sys.argv[1])
for base, adapter, answer in asked:
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**bits) if bits else None,
        device_map={"": device},
    )
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        logits = model.eval()(input_ids=torch.load(probe).to(device)).logits
    torch.save(logits.float().cpu(), answer)
assert not any(name.startswith("distributed_ft") for name in sys.modules)
"""


def attention_of(method: str) -> str:
    """Flash attention; but a prefix is keys that no token of the row stands for, which takes a mask, which torch's
    flash kernel does not."""
    return "EFFICIENT_ATTENTION" if method == "prefix" else FLASH


def train(world: World, config: RunConfig, backend: str) -> tuple[set[str], torch.Tensor]:
    """Train with this attention kernel and no other; the names of torch's operations in a forward and backward pass,
    and the trainer's own logits for PROBE."""
    directory = RunDirectory(Path(config.runs_dir) / config.name)
    run = open_run(config, directory, data_for(config, directory), world, StopRequest())
    probe, logits = probe_batch().to(world.device), list[torch.Tensor]()
    with sdpa_kernel(getattr(SDPBackend, backend)):
        fit(run)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run.strategy.sync_gradients(True)
            run.strategy.backward(run.model(probe) / PROBE.numel())
    run.token_loss.eval()
    head = run.token_loss.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, out: logits.append(out.float().cpu()))
    with torch.no_grad():  # through TokenLoss, because there FSDP gathers the weights
        run.model(probe)
    hook.remove()
    return {event.key for event in seen.key_averages()}, logits[0]


def probe_batch() -> MicroBatch:
    length = PROBE.shape[1]
    everywhere, boundaries = torch.arange(length), torch.tensor([0, length], dtype=torch.int32)
    return MicroBatch(PROBE, everywhere[None], boundaries, length, everywhere, torch.zeros_like(everywhere))


def plain_logits(folder: Path, bits: dict[str, Any] | None, *models: tuple[str, str]) -> list[torch.Tensor]:
    """The logits for PROBE of each (base, adapter or ""), from plain transformers and PEFT in a fresh process."""
    probe, answers = folder / "probe.pt", [folder / f"{number}.pt" for number in range(len(models))]
    torch.save(PROBE, probe)
    asked = [(*model, str(answer)) for model, answer in zip(models, answers, strict=True)]
    arguments = json.dumps([DEVICE, bits, str(probe), asked])
    done = subprocess.run([sys.executable, "-c", PLAIN, arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    # prompt tuning answers for its own tokens too
    return [torch.load(answer)[0, -PROBE.shape[1] :] for answer in answers]


def with_bottlenecks(base: str, directory: Path) -> torch.Tensor:
    """The logits for PROBE of a plain transformers model with the bottleneck adapters of a checkpoint."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map={"": DEVICE}).eval()
    bottleneck.load(model, directory)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        logits: torch.Tensor = model(input_ids=PROBE.to(DEVICE)).logits[0]
    return logits.float().cpu()


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over all logits."""
    return float((got - expected).norm() / expected.norm())


def curve(config: RunConfig) -> torch.Tensor:
    """(steps, 2): loss and gradient norm."""
    lines = read_json_lines(Path(config.runs_dir) / "run" / "metrics.jsonl")
    return torch.tensor([(line["loss"], line["grad_norm"]) for line in lines])


@pytest.fixture
def make(tmp_path: Path, bases: Callable[..., Path]) -> Callable[..., RunConfig]:
    rows = write_rows(tmp_path / "rows.jsonl", 80)

    def config(method: str, strategy: str = "ddp", **model: Any) -> RunConfig:
        settings, lr = METHODS[method]
        made = make_config(
            bases("llama", **SIZES),
            rows,
            tmp_path / strategy,
            model={"dtype": "bf16", **model},
            method=settings,
            strategy=STRATEGIES[strategy],
            optim={"lr": lr, "max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2},
        )
        prepare_run(made)
        return made

    return config


@pytest.mark.parametrize("method", [pytest.param(m, marks=QUANTIZED if m in BITS else ()) for m in METHODS])
def test_a_method_learns_over_the_kernel_asked_for_and_reloads_in_plain_libraries(
    make: Callable[..., RunConfig], tmp_path: Path, method: str
) -> None:
    recompute = "full" if method in ("full", "lora", "qlora nf4", "prompt") else "none"
    config = make(method, gradient_checkpointing=recompute)
    ((operations, trained),) = run_ranks(1, train, config=config, backend=attention_of(method))
    kernel = "efficient" if method == "prefix" else "flash"
    ran = {name for name in operations if name.startswith("aten::_scaled_dot_product")}
    assert ran, "attention went through SDPA"
    assert all(f"_{kernel}_attention" in name for name in ran), ran
    assert any("_backward" in name for name in ran), ran

    losses = curve(config)[:, 0]
    assert losses.isfinite().all()
    assert losses[-3:].mean() < 0.95 * losses[0]

    newest = RunDirectory(Path(config.runs_dir) / "run").newest_complete()
    assert newest is not None
    assert newest.step == STEPS
    base, model = config.model.base, str(newest.model)
    if method == "adapter":  # which PEFT has none of
        (untrained,), reloaded = plain_logits(tmp_path, None, (base, "")), with_bottlenecks(base, newest.model)
    else:
        tuned = (model, "") if method == "full" else (base, model)
        untrained, reloaded = plain_logits(tmp_path, BITS.get(method), (base, ""), tuned)
    assert distance(reloaded, trained) < RELOADED
    assert distance(untrained, trained) > 5 * RELOADED, "it did learn"


@pytest.mark.parametrize("method", ["full", "lora", pytest.param("qlora nf4", marks=QUANTIZED)])
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=ZERO)])
def test_a_strategy_on_one_gpu_agrees_with_plain_training(
    make: Callable[..., RunConfig], method: str, strategy: str
) -> None:
    """One process of DDP is plain training: nothing is wrapped, and nothing communicates."""
    plain, sharded = make(method), make(method, strategy)
    for config in (plain, sharded):
        run_ranks(1, train, config=config, backend=FLASH)
    torch.testing.assert_close(curve(sharded), curve(plain), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("method", ["full", "lora", pytest.param("qlora nf4", marks=QUANTIZED)])
def test_plain_training_on_the_gpu_agrees_with_the_cpu(make: Callable[..., RunConfig], method: str) -> None:
    config = make(method)
    run_ranks(1, train, config=config, backend=FLASH)
    on_gpu = curve(config)[:, 0]
    run = RunDirectory(Path(config.runs_dir) / "run")
    run.path.rename(run.path.with_name("on-the-gpu"))
    prepare_run(config)
    run_ranks(1, train, on_cpu=True, config=config, backend="MATH")
    torch.testing.assert_close(on_gpu, curve(config)[:, 0], rtol=3e-2, atol=0)  # bf16 sums in another order
