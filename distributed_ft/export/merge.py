"""A base with an adapter added to its weights: one model, in the dtype that it was trained in."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError, brief
from distributed_ft.model.adapters import num_virtual_tokens, put_on
from distributed_ft.model.load import DTYPES, base_directory, load_tokenizer, quiet_libraries
from distributed_ft.model.quantized import quantization


def merge(config: RunConfig, weights: Path, strength: float, folder: Path) -> None:
    """Write model and tokenizer into `folder`.

    What was trained over a quantised base is added to what that base stands for, in `model.dtype`: it learned to make
    up for the rounding, and the base before it was rounded is another one.

    Raises CheckpointError when the weights are no adapter of the base, or of a kind that cannot be merged.
    """
    quiet_libraries()
    if (weights / "config.json").is_file() and not (weights / "adapter_config.json").is_file():
        raise CheckpointError(f"{weights}: is a whole model: there is nothing to merge; leave out --merge")
    base, dtype = base_directory(config.model.base), DTYPES[config.model.dtype]
    bits = quantization(config.method, dtype)
    device = torch.device("cuda" if bits is not None and torch.cuda.is_available() else "cpu")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, quantization_config=bits, device_map=None if bits is None else {"": device}
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{base}: the model cannot be loaded: {brief(error)}") from None
    if bits is not None:
        model = model.dequantize()
        model = model.to(dtype)
    adapted: Any = put_on(model, "default", weights, str(base), strength)
    if num_virtual_tokens(adapted):
        kind = adapted.active_peft_config.peft_type.value
        raise CheckpointError(f"{weights}: is a {kind} adapter, which changes no weight: it cannot be merged")
    adapted.merge_and_unload(safe_merge=True).save_pretrained(str(folder))
    load_tokenizer(str(base)).save_pretrained(str(folder))
