"""What is trained: every weight, or a small adapter beside frozen ones.

A method is applied to the model before it is sharded, and says which tensors a checkpoint's `model/` holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distributed_ft.config.schema import (
    AdapterMethod,
    FullMethod,
    LowRank,
    MethodConfig,
    PrefixMethod,
    PromptMethod,
    QloraMethod,
)
from distributed_ft.model.methods import bottleneck, full, lora, peft_format, pissa, virtual_tokens
from distributed_ft.model.methods.stand_in import stand_ins


def storage_dtype(method: MethodConfig, compute: torch.dtype) -> torch.dtype:
    """Dtype in which the base's weights are kept: what is trained needs fp32, what is frozen only the compute dtype."""
    match method:
        case FullMethod():
            return torch.float32
        case LowRank() | PrefixMethod() | PromptMethod() | AdapterMethod():
            return compute
        case _:
            assert_never(method)


def needs_weights(method: MethodConfig) -> bool:
    """Whether the adapters cannot be made beside a base on the meta device: they start from its weights (DoRA, PiSSA),
    or its quantised layers are made from them (int8)."""
    if not isinstance(method, LowRank):
        return False
    return (
        method.dora or starts_from_base(method) or (isinstance(method, QloraMethod) and method.quantization == "int8")
    )


def starts_from_base(method: MethodConfig) -> bool:
    """Whether the run keeps where its adapters began: see `distributed_ft.model.methods.pissa`."""
    return isinstance(method, LowRank) and method.init == "pissa"


def apply(model: PreTrainedModel, method: MethodConfig) -> nn.Module:
    """The model with its trainable parameters marked (full) or added (an adapter: in fp32, drawn from torch's seed).

    Beside a base on the meta device, adapters are real and on the CPU, but for methods that `needs_weights`; within
    `torch.device("meta")` they are there too.

    Raises ConfigError when a target module does not exist.
    """
    with stand_ins(model):
        match method:
            case FullMethod():
                return full.apply(model)
            case LowRank():
                return lora.apply(model, method)
            case PrefixMethod() | PromptMethod():
                return virtual_tokens.apply(model, method)
            case AdapterMethod():
                return bottleneck.apply(model, method)
            case _:
                assert_never(method)


def lr_ratio(method: MethodConfig, name: str) -> float:
    """What the learning rate is multiplied with for the parameter of this name: LoRA+ (Hayou et al. 2024)."""
    ratio = method.lora_plus if isinstance(method, LowRank) else None
    return ratio if ratio is not None and ".lora_B." in name else 1.0


def saved_tensors(model: nn.Module, method: MethodConfig) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the file) of each tensor that `model/` holds."""
    match method:
        case FullMethod():
            return full.saved_tensors(model)
        case LowRank() | PrefixMethod() | PromptMethod():
            return peft_format.saved_tensors(model)
        case AdapterMethod():
            return bottleneck.saved_tensors(model)
        case _:
            assert_never(method)


def as_saved(method: MethodConfig, key: str, tensor: Tensor, start: Path) -> Tensor:
    """What the file holds for a trained tensor; `start`: where the run keeps how its adapters began."""
    return pissa.on_the_base(key, tensor, start) if starts_from_base(method) else tensor


def weights_name(method: MethodConfig) -> str:
    """Stem of the safetensors file(s), as transformers and PEFT look for it."""
    match method:
        case FullMethod():
            return "model"
        case LowRank() | PrefixMethod() | PromptMethod() | AdapterMethod():
            return "adapter_model"
        case _:
            assert_never(method)


def saved_dtype(method: MethodConfig, compute: torch.dtype) -> torch.dtype:
    """Dtype of the tensors in `model/`: whole models in the one they compute in, adapters as they are trained."""
    match method:
        case FullMethod():
            return compute
        case LowRank() | PrefixMethod() | PromptMethod() | AdapterMethod():
            return torch.float32
        case _:
            assert_never(method)


def write_description(model: nn.Module, method: MethodConfig, base: str, dtype: torch.dtype, directory: Path) -> None:
    """The JSON files that make `directory`, whose tensors are `dtype`, loadable by plain transformers or PEFT.
    No collective inside."""
    match method:
        case FullMethod():
            full.write_description(model, base, dtype, directory)
        case LowRank():
            changes = pissa.description(method) if starts_from_base(method) else {}
            peft_format.write_description(model, base, directory, **changes)
        case PrefixMethod() | PromptMethod():
            peft_format.write_description(model, base, directory)
        case AdapterMethod():
            bottleneck.write_description(method, base, directory)
        case _:
            assert_never(method)
