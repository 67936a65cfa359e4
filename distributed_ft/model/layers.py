"""Which parts of a transformers model are its decoder layers."""

from torch import nn


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The blocks, in order, that transformers says must stay whole (`_no_split_modules`); empty where it names none."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in names]
