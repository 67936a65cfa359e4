"""A base's weights, read from its safetensors files into the place where they stay.

The model is built without memory (its parameters on the meta device), sharded like that, and only then filled: a rank
reads its own rows of each tensor, and never holds the whole model. 4-bit weights cannot be made from a few rows (their
scales are quantised over the whole tensor), so there the ranks take turns, a tensor each: see `parallel.fill`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState


@dataclass(frozen=True)
class Slot:
    """A parameter (or persistent buffer) of the model, and the tensor in the files that it is filled from.

    It is named by its module, which outlives PEFT's wrapping, sharding and the renaming that these bring. `ties`: the
    other places where the same parameter stands.
    """

    module: nn.Module
    attribute: str
    key: str
    file: Path
    ties: tuple[tuple[nn.Module, str], ...] = ()

    @property
    def tensor(self) -> Tensor:
        """What stands in the model now: on the meta device, sharded, or filled."""
        found = getattr(self.module, self.attribute)
        assert isinstance(found, Tensor)
        return found

    @property
    def packed(self) -> bool:
        """Whether the model keeps it in 4 bits, two weights in a byte."""
        return is_4bit(self.module) and self.attribute == "weight"

    def read(self, rows: slice = slice(None)) -> Tensor:
        """These rows of the tensor in the file, in the file's dtype; a scalar whole."""
        with safe_open(self.file, "pt") as file:  # not kept open: mapped pages count as this rank's memory
            found = file.get_slice(self.key)
            tensor: Tensor = found[rows] if found.get_shape() else file.get_tensor(self.key)
            return tensor

    def retie(self) -> None:
        """Put the parameter that stands here now into the other places of a tied one."""
        for module, attribute in self.ties:
            setattr(module, attribute, self.tensor)


@dataclass(frozen=True)
class Weights:
    """What a model built without memory is to be filled with.

    dtype: that weights are in before they are quantised; quantization: how they are, or None.
    """

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    quantization: BitsAndBytesConfig | None = None

    def quantize(self, slot: Slot, device: torch.device) -> tuple[Tensor, "QuantState"]:
        """A whole tensor in 4 bits, computed and left on `device`: the bytes, (weights / 2, 1) uint8, and the scales
        without which they mean nothing (1/32 of their size)."""
        from bitsandbytes.functional import quantize_4bit

        asked = self.quantization
        assert asked is not None
        made: tuple[Tensor, QuantState] = quantize_4bit(
            slot.read().to(self.dtype).to(device),
            compress_statistics=asked.bnb_4bit_use_double_quant,
            quant_type=asked.bnb_4bit_quant_type,
            quant_storage=asked.bnb_4bit_quant_storage,
        )
        return made

    def packed(self, data: Tensor, module: nn.Module) -> nn.Parameter:
        """bitsandbytes' parameter for the bytes of a Linear4bit, with the scales that the module has by now."""
        from bitsandbytes.nn import Params4bit

        asked = self.quantization
        assert asked is not None
        made: nn.Parameter = Params4bit(
            data,
            quant_state=module.quant_state,
            compress_statistics=asked.bnb_4bit_use_double_quant,
            quant_type=asked.bnb_4bit_quant_type,
            quant_storage=asked.bnb_4bit_quant_storage,
            module=module,
            bnb_quantized=True,
        )
        return made

    def pack(self) -> None:
        """Give each 4-bit weight, on the meta device still, the shape of its bytes, by which it is sharded."""
        for slot in self.slots:
            if slot.packed:
                shape = ((slot.tensor.numel() + 1) // 2, 1)
                slot.module.weight = self.packed(torch.empty(shape, dtype=torch.uint8, device="meta"), slot.module)


def is_4bit(module: nn.Module) -> bool:
    """Whether bitsandbytes keeps this module's weight in 4 bits."""
    kind = type(module)  # PEFT has a Linear4bit too, which wraps one of these
    return kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes.")


def slots(model: PreTrainedModel, folder: Path) -> tuple[Slot, ...] | None:
    """Where each tensor of `model`, just built, lies in the files of its base; a tied one once.

    None when a tensor has no counterpart of the same name and shape there: transformers then makes it out of others
    as it loads (fused experts, renamed layers), or a file is missing, and either is for it to say. Nor when a tied one
    lies there twice with different values: transformers does not tie it then, whatever the config says.
    """
    keys = model.state_dict(keep_vars=True)
    places: dict[int, list[str]] = {}
    for name, tensor in keys.items():
        places.setdefault(id(tensor), []).append(name)
    files = _renamed(model, folder, keys)
    found = []
    for names in places.values():
        there = [files[name] for name in names if name in files]
        if not there or any(stored.shape != tuple(keys[names[0]].shape) for stored in there):
            return None
        first, *others = there
        if not all(_equal(first, other) for other in others):
            return None
        (module, attribute), *ties = (_place(model, n) for n in names)
        found.append(Slot(module, attribute, first.key, first.file, tuple(ties)))
    return tuple(found)


@dataclass(frozen=True)
class _Stored:
    key: str
    file: Path
    shape: tuple[int, ...]


def _renamed(model: PreTrainedModel, folder: Path, keys: dict[str, Tensor]) -> dict[str, _Stored]:
    """What lies in the files, by the name that transformers gives it in the model; what it converts is left out."""
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    found = {}
    for stored in _stored(folder):
        name, converted = rename_source_key(stored.key, renamings, converters, model.base_model_prefix, keys)
        if converted is None:
            found[name] = stored
    return found


def _equal(one: _Stored, other: _Stored, rows: int = 4096) -> bool:
    """Whether two tensors of one shape have the same values, read a few rows at a time."""
    with safe_open(one.file, "pt") as one_file, safe_open(other.file, "pt") as other_file:
        a, b = one_file.get_slice(one.key), other_file.get_slice(other.key)
        return all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in range(0, one.shape[0], rows))


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _stored(folder: Path) -> Iterator[_Stored]:
    """Every tensor in the files that belong to the base: those of its index, or the one that it has."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    names = [single.name] if single.is_file() else []
    if not names and index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for file in (folder / name for name in names):
        if file.is_file():
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    yield _Stored(key, file, tuple(opened.get_slice(key).get_shape()))
