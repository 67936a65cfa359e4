"""How large a parameter is as a whole, whatever of it this rank holds and in however many bits."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distributed_ft.model.weights import is_4bit


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of the whole tensor, also where ZeRO-3 has taken it away (FSDP's tensors say it themselves)."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters of the model, tied ones once; a 4-bit one as what it stands for (two in each byte)."""
    linear: list[Any] = [module for module in model.modules() if is_4bit(module)]
    packed = {id(module.weight): module.in_features * module.out_features for module in linear}
    sizes = [(p.requires_grad, packed.get(id(p), math.prod(whole_shape(p)))) for p in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)
