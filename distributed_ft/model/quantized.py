"""A base in 4 bits, by bitsandbytes through transformers: how it is asked for, what it needs to train right."""

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from distributed_ft.config.schema import MethodConfig, QloraMethod


def quantization(method: MethodConfig, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers is asked for when it loads a base for this method; None: its weights as they are.

    4-bit weights are stored as bytes: FSDP2 casts what it stores as floats to its compute dtype.
    """
    if not isinstance(method, QloraMethod):
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=torch.uint8,
    )


def keep_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit weights in the layout that they are stored in, and freeze what is not quantised.

    On CPUs with AVX512-bf16, bitsandbytes repacks a weight in place the first time that it is used in eval mode; FSDP2
    would then go on with bytes that mean something else, without an error.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
