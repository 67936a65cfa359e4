"""A base that is read tensor by tensor onto the GPU is the one that transformers loads there, and never lies in host
memory as a whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_ranks
from support.tiny import make_config
from transformers import AutoModelForCausalLM

from benchmarks.harness import memory_bytes
from distributed_ft.config.schema import ModelConfig, QloraMethod, RunConfig
from distributed_ft.model.load import build_model, load_model
from distributed_ft.model.quantized import quantization
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.strategy import make_strategy
from distributed_ft.parallel.world import World
from distributed_ft.train.optim import make_optimizer
from distributed_ft.train.run import build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "vocab_size": 32_000}
LARGE |= {"num_attention_heads": 16, "num_key_value_heads": 8, "dtype": "bfloat16"}  # 600 MB, the largest tensor 66 MB


def filled(base: Path, dtype: torch.dtype, bits: Any = None) -> Any:
    model, content = build_model(ModelConfig(base=str(base)), dtype, DEVICE, bits)
    assert content is not None, "streamed"
    assert all(p.is_meta for p in model.parameters())
    fill(model, content, World(0, 1, 0, DEVICE), DEVICE)
    return model.to(DEVICE)


def loaded(base: Path, dtype: torch.dtype, bits: Any = None) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=bits, device_map={"": DEVICE})


def assert_same_bits(model: Any, expected: Any) -> None:
    ours, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    assert list(ours) == list(theirs)  # tied ones are listed once
    for name, tensor in theirs.items():
        assert ours[name].device == tensor.device == DEVICE, name
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    ours, theirs = dict(model.named_buffers()), dict(expected.named_buffers())
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():  # rotary tables, which either computes where it likes
        assert ours[name].device == DEVICE, name
        torch.testing.assert_close(ours[name], tensor.to(DEVICE), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_every_tensor_has_the_bits_of_transformers(
    bases: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    base = bases(architecture)
    assert_same_bits(filled(base, dtype), loaded(base, dtype))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_weights_quantised_on_the_gpu_have_the_bits_of_transformers(
    bases: Callable[..., Path], compute: torch.dtype, double_quant: bool
) -> None:
    pytest.importorskip("bitsandbytes")
    base = bases("llama", hidden_size=64, intermediate_size=128)
    bits = quantization(QloraMethod(type="qlora", double_quant=double_quant), compute)
    model, expected = filled(base, compute, bits), loaded(base, compute, bits)
    assert_same_bits(model, expected)
    quantised = 0
    for (name, module), (_, theirs) in zip(model.named_modules(), expected.named_modules(), strict=True):
        assert getattr(module, "quant_state", None) == getattr(theirs, "quant_state", None), name
        if hasattr(theirs, "quant_state"):
            quantised += 1
            assert module.weight.quant_state is module.quant_state
            assert module.quant_state.absmax.device == DEVICE
    assert quantised == 2 * 7  # linear layers of the two decoder layers


def load_and_measure(world: World, config: RunConfig) -> tuple[int, int, set[str]]:
    """How far the peak of host memory rises by loading, bytes of the parameters, and where they lie."""
    warm = torch.randn(64, 64, device=world.device)  # what CUDA and NCCL themselves take on the host
    dist.all_reduce(warm @ warm)
    if config.method.type == "qlora":
        from bitsandbytes.functional import quantize_4bit

        quantize_4bit(warm, compress_statistics=True, quant_type="nf4")
    before = memory_bytes("VmHWM")
    token_loss, content = build(config, world)
    assert content is not None, "streamed"
    make_strategy(config, world).setup(token_loss, content, lambda module: make_optimizer(module, config.optim))
    rise = memory_bytes("VmHWM") - before
    parameters = list(token_loss.parameters())
    return rise, sum(p.numel() * p.element_size() for p in parameters), {p.device.type for p in parameters}


def config_of(base: Path, folder: Path, method: str, strategy: str) -> RunConfig:
    chosen = {"model": {"dtype": "bf16"}, "method": {"type": method, "rank": 4}, "strategy": {"type": strategy}}
    return make_config(base, folder / "no rows", folder, **chosen)


def bytes_of(base: Path) -> int:
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))


def load_whole_and_measure(world: World, config: RunConfig) -> int:
    """How far the peak of host memory rises where transformers loads the base, and all of it is used on the host."""
    before = memory_bytes("VmHWM")
    model = load_model(config.model, torch.bfloat16, world.device)
    assert all(p.device.type == "cpu" for p in model.parameters())
    sum(float(p.detach().sum()) for p in model.parameters())  # until then its pages are mapped, and not there
    return memory_bytes("VmHWM") - before


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_host_never_holds_the_model(tmp_path: Path, bases: Callable[..., Path], method: str, strategy: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    base = bases("llama", **LARGE)
    size = bytes_of(base)
    config = config_of(base, tmp_path, method, strategy)
    ((rise, held, places),) = run_ranks(1, load_and_measure, config=config)
    assert places == {DEVICE.type}
    assert held > (0.9 if method == "lora" else 0.25) * size
    assert rise < size / 2, f"{rise / 2**20:.0f} MiB of host memory for a base of {size / 2**20:.0f} MiB"


def test_a_host_that_holds_the_model_is_noticed(tmp_path: Path, bases: Callable[..., Path]) -> None:
    base = bases("llama", **LARGE)
    (rise,) = run_ranks(1, load_whole_and_measure, config=config_of(base, tmp_path, "lora", "ddp"))
    assert rise > 0.9 * bytes_of(base)
