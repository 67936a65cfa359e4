"""What is trained: every weight, or a small adapter beside frozen ones.

A method is applied to the model before it is sharded, and says which tensors a checkpoint's `model/` holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import torch
from torch import nn
from transformers import PreTrainedModel

from distributed_ft.config.schema import FullMethod, LowRank, MethodConfig
from distributed_ft.model.methods import full, lora
from distributed_ft.model.methods.stand_in import stand_ins


def storage_dtype(method: MethodConfig, compute: torch.dtype) -> torch.dtype:
    """Dtype in which the base's weights are kept: what is trained needs fp32, what is frozen only the compute dtype."""
    match method:
        case FullMethod():
            return torch.float32
        case LowRank():
            return compute
        case _:
            assert_never(method)


def apply(model: PreTrainedModel, method: MethodConfig) -> nn.Module:
    """The model with its trainable parameters marked (full) or added (LoRA, in fp32).

    Raises ConfigError when a target module does not exist.
    """
    with stand_ins(model):
        match method:
            case FullMethod():
                return full.apply(model)
            case LowRank():
                return lora.apply(model, method)
            case _:
                assert_never(method)


def saved_tensors(model: nn.Module, method: MethodConfig) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the file) of each tensor that `model/` holds."""
    match method:
        case FullMethod():
            return full.saved_tensors(model)
        case LowRank():
            return lora.saved_tensors(model)
        case _:
            assert_never(method)


def weights_name(method: MethodConfig) -> str:
    """Stem of the safetensors file(s), as transformers and PEFT look for it."""
    match method:
        case FullMethod():
            return "model"
        case LowRank():
            return "adapter_model"
        case _:
            assert_never(method)


def saved_dtype(method: MethodConfig, compute: torch.dtype) -> torch.dtype:
    """Dtype of the tensors in `model/`: whole models in the one they compute in, adapters as they are trained."""
    match method:
        case FullMethod():
            return compute
        case LowRank():
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
            lora.write_description(model, base, directory)
        case _:
            assert_never(method)
