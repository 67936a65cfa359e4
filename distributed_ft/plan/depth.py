"""A deep model's memory from two shallow ones.

Layers that are equal do equal things in turn. So at any moment that is told by its phase and its distance from the
first or the last layer ("backward, in the last layer but one"), what lives is a straight line in the number of layers,
part by part; and the fullest moment in a run of equal layers is near one of its ends. Two depths give each moment's
line. (A line through the *peaks* would be wrong: at another depth another moment may be the fullest.)
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distributed_ft.config.schema import ModelConfig
from distributed_ft.model.layers import decoder_layers
from distributed_ft.model.load import build_empty
from distributed_ft.plan.base import architecture_of
from distributed_ft.plan.ledger import Ledger

_EDGE = 2  # layers at either end that are told apart: FSDP works one ahead
_LONGEST_PERIOD = 6  # of layers that are not all alike (five that look near, one that looks far)


@dataclass(frozen=True)
class Depths:
    """Two depths whose moments are those of `whole` layers."""

    first: int
    second: int
    whole: int

    def extended(
        self, first: dict[str, dict[str, int]], second: dict[str, dict[str, int]]
    ) -> dict[str, dict[str, int]]:
        """What was found at the two depths, by moment and kind, drawn out to the whole depth."""
        first = {name: first[name] for name in second if name in first}  # the shallower one may have no middle
        share = (self.whole - self.first) / (self.second - self.first)

        def line(name: str, kind: str) -> int:
            a, b = first[name].get(kind, 0), second[name].get(kind, 0)
            return max(0, round(a + (b - a) * share))

        return {name: {kind: line(name, kind) for kind in {*first[name], *second[name]}} for name in first}


def enough(model: ModelConfig) -> Depths | None:
    """Depths to measure in place of the model's own; None: measure that. Layers may repeat in a pattern."""
    empty = build_empty(model)
    layers = decoder_layers(empty)
    whole = len(layers)
    if whole != empty.config.get_text_config().num_hidden_layers:
        return None
    types = getattr(empty.config.get_text_config(), "layer_types", None) or [None] * whole
    looks = [(_shapes(layer), kind, _recomputes(layer)) for layer, kind in zip(layers, types, strict=True)]
    for period in range(1, _LONGEST_PERIOD + 1):
        if looks[period:] == looks[:-period]:
            first = period + whole % period
            while first < 2 * _EDGE - 1:
                first += period
            depths = Depths(first, first + period, whole)
            return depths if depths.second < whole else None
    return None


@contextmanager
def at(model: ModelConfig, layers: int) -> Iterator[ModelConfig]:
    """The same model with so many layers."""
    architecture = architecture_of(model.base).to_dict()
    text = architecture.get("text_config") or architecture
    text["num_hidden_layers"] = layers
    if text.get("layer_types"):
        text["layer_types"] = text["layer_types"][:layers]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(architecture, default=str))
        yield model.model_copy(update={"base": folder})


def mark_layers(module: nn.Module, ledger: Ledger) -> None:
    """Have every decoder layer begin a segment of the ledger, forwards and backwards."""
    layers = decoder_layers(module)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_before(ledger, _names(index, len(layers))))
        layer.register_forward_hook(_after(ledger, _names(index, len(layers)), _names(index + 1, len(layers))))


def _before(ledger: Ledger, names: list[str]) -> Callable[[nn.Module, Any], None]:
    return lambda _, __: ledger.mark(*names)


def _after(ledger: Ledger, names: list[str], following: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def after(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if ledger.phase.startswith("forward"):
            ledger.mark(*following)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: ledger.mark(*names))

    return after


def _names(index: int, layers: int) -> list[str]:
    """By the distance from the first and from the last; those in the middle share a name."""
    if index == layers:
        return ["after"]
    names = [f"layer {index}"] if index < _EDGE else []
    names += [f"layer {index - layers}"] if layers - index <= _EDGE else []
    return names or ["middle"]


def _shapes(layer: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]


def _recomputes(layer: nn.Module) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False))
