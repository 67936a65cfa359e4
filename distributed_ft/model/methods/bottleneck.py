"""Bottleneck adapters: x + up(f(down(x))) on the output of a decoder layer's parts, the base frozen.

houlsby (Houlsby et al. 2019, arXiv:1902.00751): after attention and after the MLP, f = SiLU. pfeiffer (Pfeiffer et al.
2020, arXiv:2005.00247): after the MLP only, f = ReLU. Both before the residual sum, and with the activations that
AdapterHub gives them. `up` starts at zero, so an untrained adapter changes nothing.

PEFT has none, so the format is ours: `adapter_model.safetensors`, whose names are those of the model, and
`bottleneck_config.json`. `load` puts such a directory on a plain transformers model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from distributed_ft.config.schema import AdapterMethod
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.model.layers import decoder_layers

DESCRIPTION = "bottleneck_config.json"
WEIGHTS = "adapter_model.safetensors"
_CHILD = "bottleneck"  # the adapter's name within the part whose output it changes
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_ACTIVATIONS = {"houlsby": F.silu, "pfeiffer": F.relu}


class Bottleneck(nn.Module):
    """(…, width) -> (…, width), in the dtype of its input."""

    def __init__(self, width: int, inner: int, adapter: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = _ACTIVATIONS[adapter]

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.activation(self.down(hidden.to(self.down.weight.dtype)))
        result: Tensor = hidden + self.up(inner).to(hidden.dtype)
        return result


def apply(model: PreTrainedModel, method: AdapterMethod) -> nn.Module:
    """The frozen model with adapters in fp32. Raises ConfigError when its layers have no such parts."""
    model.requires_grad_(False)
    attach(model, method)
    return cast(nn.Module, model)


def attach(model: PreTrainedModel, method: AdapterMethod) -> list[RemovableHandle]:
    """Add the adapters to the layers' parts, beside the base's parameters, whose names stay; see `detach`."""
    width = model.config.get_text_config().hidden_size
    inner = max(1, width // method.reduction_factor)
    parts = list(_parts(model, method))
    device = next(model.parameters()).device
    for part in parts:
        part.add_module(_CHILD, Bottleneck(width, inner, method.adapter).to(device))
    return [part.register_forward_hook(_after) for part in parts]


def detach(model: nn.Module, handles: list[RemovableHandle]) -> None:
    """Take away what `attach` added."""
    for handle in handles:
        handle.remove()
    for part in [module for module in model.modules() if isinstance(getattr(module, _CHILD, None), Bottleneck)]:
        delattr(part, _CHILD)


def load(model: PreTrainedModel, directory: Path) -> list[RemovableHandle]:
    """Put the adapters of a checkpoint's `model/` on a plain transformers model: what PEFT cannot do with these.

    Raises CheckpointError when they are damaged, or were trained on another base; the model is then as it was.
    """
    try:
        method = AdapterMethod(**json.loads((directory / DESCRIPTION).read_text())["method"])
        tensors = load_file(directory / WEIGHTS)
        handles = attach(model, method)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: not bottleneck adapters for this base: {error}") from None
    expected = {name: p.shape for name, p in model.named_parameters() if f".{_CHILD}." in name}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(n for n in {**expected, **found} if expected.get(n) != found.get(n))
    if differing:
        detach(model, handles)
        shown = ", ".join(f"{n}: {found.get(n)} in the file, {expected.get(n)} in the model" for n in differing[:3])
        raise CheckpointError(f"{directory}: bottleneck adapters for another base ({shown})")
    model.load_state_dict(tensors, strict=False)
    return handles


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The adapters' tensors, under their names in the model."""
    return ((name, name) for name, parameter in model.named_parameters() if parameter.requires_grad)


def write_description(method: AdapterMethod, base: str, directory: Path) -> None:
    """bottleneck_config.json."""
    loads = f"{load.__module__}.{load.__qualname__}(model, directory)"
    described = {"schema": 1, "base": base, "method": method.model_dump(), "load_with": loads}
    (directory / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def _parts(model: PreTrainedModel, method: AdapterMethod) -> Iterator[nn.Module]:
    """The modules of each decoder layer whose output an adapter changes."""
    layers = decoder_layers(model)
    for layer in layers:
        children = {name: child for name, child in layer.named_children() if _holds_linear(child)}
        mlp = [child for name, child in children.items() if name in _MLP_NAMES]
        attention = [child for name, child in children.items() if "attn" in name or "attention" in name]
        if len(mlp) != 1 or (method.adapter == "houlsby" and len(attention) != 1):
            raise ConfigError(
                f"method.adapter: {method.adapter}: a {type(layer).__name__} of this base has "
                f"{', '.join(children) or 'no parts with weights'}, not one attention and one MLP; use method: "
                "{type: lora}"
            )
        if method.adapter == "houlsby":
            yield attention[0]
        yield mlp[0]
    if not layers:
        raise ConfigError(f"method.type: adapter: {type(model).__name__} names no layers; use method: {{type: lora}}")


def _holds_linear(module: nn.Module) -> bool:
    return any("Linear" in type(part).__name__ or type(part).__name__ == "Conv1D" for part in module.modules())


def _after(part: nn.Module, _: Any, output: Any) -> Any:
    """The forward hook of an adapted part, which gives a tensor, or a tuple that begins with one."""
    adapter = part.get_submodule(_CHILD)
    if isinstance(output, torch.Tensor):
        return adapter(output)
    return (adapter(output[0]), *output[1:])
