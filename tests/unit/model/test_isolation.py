"""Architectures whose packed documents would see one another are refused; those whose do not are let through."""

from typing import Any

import pytest
import torch
from support.tiny import SIZES, VOCAB, make_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from distributed_ft.config.schema import ModelConfig
from distributed_ft.errors import ConfigError
from distributed_ft.model import attention
from distributed_ft.model.isolation import check_isolation
from distributed_ft.model.token_loss import TokenLoss

CPU = torch.device("cpu")
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ISOLATED = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
OTHERS: dict[str, dict[str, Any]] = {"mixtral": EXPERTS, "olmo2": {}, "cohere2": {"sliding_window": 8}}
CONTAMINATED: dict[str, dict[str, Any]] = {
    "gpt_oss": {**EXPERTS, "head_dim": 8, "sliding_window": 8},  # makes masks of its own
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # convolves over the whole row
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 2},  # carries a state over the whole row
}


def other(name: str, settings: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(
        name, **{**SIZES, "vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": 0, **settings}
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    return model


def check(model: PreTrainedModel, dtype: str) -> None:
    config = ModelConfig(base="some-base", dtype=dtype)  # type: ignore[arg-type]
    model.set_attn_implementation(attention.implementation(config, CPU, model))
    loss = TokenLoss(model, autocast=torch.bfloat16 if dtype == "bf16" else None)
    check_isolation(loss, loss, config, CPU)
    assert loss.training


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*ISOLATED, *OTHERS])
def test_an_architecture_that_isolates_documents_is_let_through(name: str, dtype: str) -> None:
    check(make_model(name) if name in ISOLATED else other(name, OTHERS[name]), dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONTAMINATED)
def test_an_architecture_that_does_not_is_refused(name: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.base: some-base: documents .* would see one another"):
        check(other(name, CONTAMINATED[name]), dtype)


def test_one_that_cannot_be_run_on_packed_documents_at_all_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"model\.base: some-base: this architecture cannot be trained on packed"):
        check(other("stablelm", {}), "fp32")
