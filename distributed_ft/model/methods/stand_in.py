"""Adapters made on a base that is not there yet: its parameters on the meta device, the adapters' own real."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """While it lasts, each parameter on the meta device is a real one without memory (one number, repeated).

    A library that makes an adapter where the base lies makes it on the CPU then, with the numbers that it would have
    drawn beside the real base. Within `torch.device("meta")` everything stays there: for shapes alone.
    """
    slots = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    made = {id(parameter): _stand_in(parameter) for _, _, parameter in slots}  # tied ones stay tied
    for module, name, parameter in slots:
        module._parameters[name] = made[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in slots:
            parameter.requires_grad_(made[id(parameter)].requires_grad)
            module._parameters[name] = parameter


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    data = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    made: nn.Parameter = torch.Tensor._make_subclass(type(parameter), data, parameter.requires_grad)
    vars(made).update(vars(parameter))  # how a quantised one is packed
    return made
