"""PiSSA (Meng et al. 2024, arXiv:2404.02948): adapters that start as the principal part of the weight they adapt.

W = W_res + s B0 A0, where B0 A0 holds the largest singular values, s = alpha / rank, and W_res takes W's place. The
start is computed once a run and kept in its directory: singular vectors have no sign of their own, so that another
machine, or another number of threads, would begin elsewhere. What is saved for the user fits W itself:
W_res + s B A = W + s (B A - B0 A0), an adapter of twice the rank (eq. in the paper's section on quick conversion).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from distributed_ft.artifacts import write_atomic
from distributed_ft.config.schema import LowRank
from distributed_ft.errors import ConfigError
from distributed_ft.model.methods.peft_format import saved_tensors

_ITERATIONS = 16  # of the randomised SVD (Halko et al. 2011, arXiv:0909.4061), as PEFT recommends


def write_start(model: nn.Module, file: Path, device: torch.device) -> None:
    """Compute A0 and B0 of every adapted layer, on `device`, and write them under the names of the adapter's file.

    Raises ConfigError when the rank exceeds a layer's, OSError.
    """
    keys = dict(saved_tensors(model))
    start: dict[str, Tensor] = {}
    for name, layer in _layers(model):
        rank, scaling = layer.r["default"], layer.scaling["default"]
        weight = _oriented(layer).detach().to(device, torch.float32)
        if rank > min(weight.shape):
            raise ConfigError(
                f"method.rank: {rank}: {name} has no more than {min(weight.shape)} singular values to start from; "
                "lower it, or write init: default"
            )
        more = min(2 * rank + 8, *weight.shape)  # than are kept: the last ones converge slowly
        left, values, right = (part[..., :rank] for part in torch.svd_lowrank(weight, more, niter=_ITERATIONS))
        root = (values / scaling).sqrt()
        start[keys[f"{name}.lora_A.default.weight"]] = (root[:, None] * right.T).cpu().contiguous()
        start[keys[f"{name}.lora_B.default.weight"]] = (left * root).cpu().contiguous()
    write_atomic(file, save(start))


@torch.no_grad()
def begin(model: nn.Module, file: Path) -> None:
    """Put the adapters at the start in `file`, and the residual in place of each adapted weight."""
    keys = dict(saved_tensors(model))
    with safe_open(file, "pt") as start:
        for name, layer in _layers(model):
            a, b = (layer.get_submodule(f"lora_{x}.default").weight for x in "AB")
            a.copy_(start.get_tensor(keys[f"{name}.lora_A.default.weight"]))
            b.copy_(start.get_tensor(keys[f"{name}.lora_B.default.weight"]))
            weight = _oriented(layer)
            weight.copy_(weight.float() - layer.scaling["default"] * b @ a)


def on_the_base(key: str, tensor: Tensor, file: Path) -> Tensor:
    """A trained A or B, joined with where it began, so that both together fit the base as it was; others as they are.

    Args:
        key: name of the tensor in the adapter's file.
        tensor: A (rank, in) -> (2 rank, in); B (out, rank) -> (out, 2 rank).
    """
    if ".lora_A." not in key and ".lora_B." not in key:
        return tensor
    with safe_open(file, "pt") as start:
        begun = start.get_tensor(key)
    return torch.cat([tensor, begun], dim=0) if ".lora_A." in key else torch.cat([tensor, -begun], dim=1)


def description(method: LowRank) -> dict[str, Any]:
    """What adapter_config.json says otherwise than in training: twice the rank at the same scale."""
    return {"r": 2 * method.rank, "lora_alpha": method.alpha * (math.sqrt(2) if method.rslora else 2)}


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if "default" in getattr(module, "lora_A", ()))


def _oriented(layer: Any) -> Tensor:
    """The adapted weight as (out, in), a view; some layers (GPT-2's) keep it the other way round."""
    weight: Tensor = layer.get_base_layer().weight
    return weight.T if layer.fan_in_fan_out else weight
