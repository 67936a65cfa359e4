"""The base of a plan: its architecture, from a config.json alone, as if its weights were at hand.

Of some public models that file is shipped (`assets/architectures/`), so that a plan needs neither network nor account.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from distributed_ft.config.schema import ModelConfig
from distributed_ft.errors import ConfigError, brief
from distributed_ft.model.load import build_model
from distributed_ft.model.weights import Slot, Weights
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.world import World
from distributed_ft.plan.pretend import with_memory

SHIPPED = Path(__file__).parents[1] / "assets" / "architectures"


@dataclass(frozen=True)
class Architecture:
    """A directory with a config.json, and where that came from, for people."""

    directory: Path
    source: str


def architecture(base: str) -> Architecture:
    """Where the config.json of a run's `model.base` is: a directory's own, the hub's, or one that is shipped.

    Raises ConfigError when there is none.
    """
    if (Path(base) / "config.json").is_file():
        return Architecture(Path(base), base)
    if Path(base).is_dir():
        raise ConfigError(
            f"model.base: {base}: has no config.json; give the directory of a model in Hugging Face format"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Architecture(Path(hf_hub_download(base, "config.json")).parent, f"the hub: {base}")
    except Exception as error:  # the hub client raises many kinds: no such id, no network, no permission
        if (SHIPPED / base / "config.json").is_file():
            return Architecture(SHIPPED / base, f"the shipped shape of {base} (the hub did not give it)")
        known = ", ".join(sorted(str(f.parent.relative_to(SHIPPED)) for f in SHIPPED.glob("*/*/config.json")))
        raise ConfigError(
            f"model.base: {base!r} is no directory, the hub does not give its config.json ({brief(error)}), and it is "
            f"none of those whose shape is shipped: {known}"
        ) from None


def architecture_of(directory: str) -> PretrainedConfig:
    """The architecture that a directory's config.json describes. Raises ConfigError when it cannot be used."""
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(directory)
    except Exception as error:  # anything from OSError to the library's own types
        raise ConfigError(f"model.base: {directory}: its config.json cannot be used: {brief(error)}") from None
    return found


@dataclass(frozen=True)
class Unread(Slot):
    """A slot whose tensor nobody reads: memory of the right size. dtype: in the file."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.bfloat16

    def read(self, rows: slice = slice(None)) -> Tensor:
        if not self.shape:
            return torch.empty((), dtype=self.dtype)
        return torch.empty(len(range(*rows.indices(self.shape[0]))), *self.shape[1:], dtype=self.dtype)


def build_base(
    config: ModelConfig, storage: torch.dtype, device: torch.device, quantization: BitsAndBytesConfig | None
) -> tuple[PreTrainedModel, Weights | None]:
    """`model.load.build_model` of a base without files. Raises ConfigError where it takes files."""
    found: list[bool] = []

    def find(model: PreTrainedModel, _: Path) -> tuple[Slot, ...]:
        found.append(True)
        return _slots(model)

    try:
        with with_memory():
            return build_model(config, storage, device, quantization, find)
    except ConfigError as error:
        if found:
            raise
        raise ConfigError(
            f"model.base: {config.base}: is not planned: it can only be built from its weights ({error})"
        ) from None


def load_base(
    config: ModelConfig, storage: torch.dtype, device: torch.device, quantization: BitsAndBytesConfig | None
) -> PreTrainedModel:
    """The same with its (unread) weights in it, as `model.load.load_model` leaves it: whole, on the CPU."""
    model, content = build_base(config, storage, device, quantization)
    assert content is not None
    alone = World(0, 1, 0, torch.device("cpu"))
    fill(cast(nn.Module, model), content, alone, alone.device)
    if quantization is not None and quantization.load_in_8bit:
        _quantize_to_8_bits(model)
    return model


def _quantize_to_8_bits(model: PreTrainedModel) -> None:
    """What transformers does with a weight when it has read it, and the layer when it first runs: bytes, and beside
    them a scale a row."""
    from bitsandbytes.functional import int8_vectorwise_quant
    from bitsandbytes.nn import Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            in_8_bits, scales, _ = int8_vectorwise_quant(module.weight.detach().half())
            module.weight = nn.Parameter(in_8_bits, requires_grad=False)
            module.state.CB, module.state.SCB = in_8_bits, scales
    settle(model)


def settle(model: nn.Module) -> None:
    """8-bit layers ask their parameter for what they took over already, and here it is a plain one."""
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and hasattr(module, "state"):
            vars(module.weight).setdefault("CB", None)


def _slots(model: PreTrainedModel) -> tuple[Slot, ...]:
    """A slot for each tensor of the model, a tied one once, as `model.weights.slots` finds them in files."""
    dtype = getattr(model.config, "dtype", None) or torch.bfloat16
    places: dict[int, list[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        places.setdefault(id(tensor), []).append(name)
    made = []
    for name, *others in places.values():
        (module, attribute), *ties = (_place(model, n) for n in (name, *others))
        tensor = state[name]
        stored = dtype if tensor.is_floating_point() else tensor.dtype
        made.append(Unread(module, attribute, name, Path(), tuple(ties), tuple(tensor.shape), stored))
    return tuple(made)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute
