"""The optimizer over what a rank holds."""

from typing import Any, assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from distributed_ft.config.schema import OptimConfig
from distributed_ft.model.shapes import whole_shape


def make_optimizer(module: nn.Module, optim: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused, or SGD with Nesterov's momentum. Biases, norms and
    other vectors are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if len(whole_shape(p)) >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    match optim.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0)
        case _:
            assert_never(optim.name)
