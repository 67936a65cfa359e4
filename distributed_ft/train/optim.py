"""The optimizer over what a rank holds."""

from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from distributed_ft.config.schema import OptimConfig
from distributed_ft.model.shapes import whole_shape


def make_optimizer(
    module: nn.Module, optim: OptimConfig, lr_ratio: Callable[[str], float] = lambda name: 1.0
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused, or SGD with Nesterov's momentum. Biases, norms and
    other vectors are not decayed. `lr_ratio`: by a parameter's name, its rate as a multiple of the run's."""
    groups = parameter_groups(module, optim.weight_decay, lr_ratio)
    match optim.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
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
