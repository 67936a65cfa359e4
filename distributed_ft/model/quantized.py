"""A base in 4 or 8 bits, by bitsandbytes through transformers: how it is asked for, what it needs to train right."""

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from distributed_ft.config.schema import MethodConfig, QloraMethod


def quantization(method: MethodConfig, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers is asked for when it loads a base for this method; None: its weights as they are.

    4-bit weights are stored as bytes: FSDP2 casts what it stores as floats to its compute dtype. 8-bit ones are those
    of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) with its threshold of 6.0 for outliers; activations pass
    through fp16 on their way to 8 bits, and the layer answers in the dtype that it was asked in, `compute`.
    """
    if not isinstance(method, QloraMethod):
        return None
    if method.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=torch.uint8,
    )


def rounds_together(method: MethodConfig) -> bool:
    """Whether the tokens of a batch decide together how each is rounded: LLM.int8() computes a column of activations in
    fp16 when any token's is an outlier. (Without outliers it would be another, worse, quantisation of a large model.)
    """
    return isinstance(method, QloraMethod) and method.quantization == "int8"


def keep_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit weights in the layout that they are stored in, and freeze what is not quantised.

    On CPUs with AVX512-bf16, bitsandbytes repacks a weight in place the first time that it is used in eval mode; FSDP2
    would then go on with bytes that mean something else, without an error.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
