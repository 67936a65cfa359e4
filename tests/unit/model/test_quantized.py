"""A base in 4 bits: small, near what it was read from, and not repacked behind our back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from distributed_ft.config.schema import ModelConfig, QloraMethod
from distributed_ft.model import methods
from distributed_ft.model.load import load_model
from distributed_ft.model.quantized import quantization
from distributed_ft.model.shapes import num_parameters

CPU = torch.device("cpu")
SIZES = {"hidden_size": 128, "intermediate_size": 256}
PROBE = torch.arange(3, 43)[None]
Bits = Literal["nf4", "int8"]


def load(base: Path, bits: Bits | None) -> Any:
    compute = torch.float32
    chosen = None if bits is None else quantization(QloraMethod(type="qlora", quantization=bits), compute)
    return load_model(ModelConfig(base=str(base), dtype="fp32", attention="eager"), compute, CPU, chosen)


def bytes_of_layers(model: Any) -> int:
    return sum(m.weight.nbytes for m in model.model.layers.modules() if "Linear" in type(m).__name__)


@pytest.mark.parametrize(("bits", "times", "off"), [("nf4", 8, 0.6), ("int8", 4, 0.1)])
def test_weights_take_less_room_and_answer_nearly_as_before(
    bases: Callable[..., Path], bits: Bits, times: int, off: float
) -> None:
    base = bases("llama", **SIZES)
    plain, packed = load(base, None), load(base, bits)
    assert bytes_of_layers(packed) == bytes_of_layers(plain) / times
    assert num_parameters(packed)[1] == num_parameters(plain)[1]
    with torch.no_grad():
        expected, got = plain(input_ids=PROBE).logits, packed(input_ids=PROBE).logits
    assert 0 < (got - expected).norm() < off * expected.norm()


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_only_the_adapters_are_trained_and_all_weights_are_counted(
    bases: Callable[..., Path], bits: Bits, dora: bool
) -> None:
    base = bases("llama", **SIZES)
    method = QloraMethod(type="qlora", rank=4, quantization=bits, dora=dora)
    model = methods.apply(load(base, bits), method)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert num_parameters(model)[1] == num_parameters(methods.apply(load(base, None), method))[1]


def test_a_forward_pass_in_eval_mode_leaves_the_packed_bytes_alone(bases: Callable[..., Path]) -> None:
    """Without `keep_layout` bitsandbytes repacks them on a CPU with AVX512-bf16, and sharded training goes wrong."""
    model = load(bases("llama", **SIZES), "nf4").eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model(input_ids=PROBE)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
