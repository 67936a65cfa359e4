"""The optimizer over what a rank holds."""

from functools import partial
from typing import Any, assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from distributed_ft.config.schema import OptimConfig
from distributed_ft.parallel.local_shards import LocalShards


def make_optimizer(module: nn.Module, optim: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused, or with moments in 8 bits by bitsandbytes (Dettmers et
    al. 2021, arXiv:2110.02861), or SGD with Nesterov's momentum. Biases, norms and other vectors are not decayed.

    8 bits are for what a rank holds of a parameter if that has at least 4096 elements; the moments of less stay fp32.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    match optim.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        case "adamw_8bit" | "paged_adamw_8bit":
            from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit  # seconds, and not everybody has it

            kind = PagedAdamW8bit if optim.name == "paged_adamw_8bit" else AdamW8bit
            return LocalShards(groups, partial(kind, lr=optim.lr, betas=optim.betas, eps=optim.eps))
        case "sgd":
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0)
        case _:
            assert_never(optim.name)
