"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190) and prompt tuning (Lester et al. 2021, arXiv:2104.08691), by PEFT.

Every document sees the trained vectors before its first token, so documents cannot lie side by side in one row: see
`distributed_ft.model.token_loss`, which gives each a row of its own.
"""

from typing import cast

from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from distributed_ft.config.schema import PrefixMethod, PromptMethod
from distributed_ft.model.attention import PACKED_SDPA


def apply(model: PreTrainedModel, method: PrefixMethod | PromptMethod) -> nn.Module:
    """The frozen model with trained virtual tokens in fp32, drawn from N(0, 1)."""
    if model.config._attn_implementation == PACKED_SDPA:
        model.set_attn_implementation("sdpa")  # transformers' own: a row is a document
    kind = PrefixTuningConfig if isinstance(method, PrefixMethod) else PromptTuningConfig
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=method.num_virtual_tokens)
    return cast(nn.Module, get_peft_model(model, config))
