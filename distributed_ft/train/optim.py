"""The optimizer over what a rank holds."""

from collections.abc import Callable
from functools import partial
from typing import Any, assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from distributed_ft.config.schema import OptimConfig
from distributed_ft.model.shapes import whole_shape
from distributed_ft.parallel.local_shards import LocalShards


def make_optimizer(
    module: nn.Module, optim: OptimConfig, lr_ratio: Callable[[str], float] = lambda name: 1.0
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused, or with moments in 8 bits by bitsandbytes (Dettmers et
    al. 2021, arXiv:2110.02861), or SGD with Nesterov's momentum. Biases, norms and other vectors are not decayed.

    8 bits are for what a rank holds of a parameter if that has at least 4096 elements; the moments of less stay fp32.
    `lr_ratio`: by a parameter's name, its rate as a multiple of the run's.
    """
    groups = parameter_groups(module, optim.weight_decay, lr_ratio)
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


def parameter_groups(module: nn.Module, weight_decay: float, lr_ratio: Callable[[str], float]) -> list[dict[str, Any]]:
    """The trained parameters by decay and rate. A group whose rate is not the run's says so as `lr_ratio`, which
    `distributed_ft.parallel.update` multiplies with."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.setdefault((len(whole_shape(parameter)) < 2, lr_ratio(name)), []).append(parameter)
    groups = []
    for (is_vector, ratio), parameters in sorted(found.items(), key=lambda group: group[0]):
        group: dict[str, Any] = {"params": parameters, "weight_decay": 0.0 if is_vector else weight_decay}
        groups.append(group if ratio == 1.0 else {**group, "lr_ratio": ratio})
    return groups
