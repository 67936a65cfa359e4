"""How PEFT stores an adapter: `adapter_model.safetensors` and `adapter_config.json`."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn

_MAGNITUDE = ".lora_magnitude_vector.default.weight"  # of DoRA; the file says neither `default` nor `weight`
_PROMPT = "prompt_encoder.default.embedding.weight"


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the file) of the adapter's tensors."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, _file_name(name)


def _file_name(name: str) -> str:
    if name == _PROMPT:
        return "prompt_embeddings"
    return name.removesuffix(".default.weight") if name.endswith(_MAGNITUDE) else name.replace(".default.", ".")


def write_description(model: nn.Module, base: str, directory: Path, **changes: Any) -> None:
    """adapter_config.json, which names the base; `changes`: what of it is other than in training."""
    config = copy.deepcopy(cast(PeftModel, model).peft_config["default"])
    for key, value in {"base_model_name_or_path": base, "inference_mode": True, **changes}.items():
        setattr(config, key, value)
    config.save_pretrained(str(directory))
