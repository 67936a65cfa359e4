"""Against torch's own count of a real pass. (It counts all pairs in attention, of which a causal one needs half.)"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from distributed_ft.model.recompute import set_recompute
from distributed_ft.train.flops import flops_per_token, peak_flops, recomputed_flops_per_token

LENGTH = 128


def config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        use_cache=False,
    )


def counted(model: nn.Module) -> float:
    """FLOPs a token of a forward and backward pass."""
    tokens = torch.randint(0, 512, (1, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    return counter.get_total_flops() / LENGTH


def sizes(model: nn.Module) -> tuple[int, int]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters()), trained


def not_needed(architecture: LlamaConfig) -> float:
    """Pairs of tokens that a causal model never looks at."""
    return 6 * architecture.num_hidden_layers * architecture.hidden_size * LENGTH


@pytest.mark.parametrize("tied", [False, True])
def test_full_fine_tuning_costs_what_torch_counts(tied: bool) -> None:
    model = LlamaForCausalLM(config(tied))
    expected = flops_per_token(model.config, *sizes(model), LENGTH) + not_needed(model.config)
    assert counted(model) == pytest.approx(expected, rel=0.01)


def test_lora_spares_the_gradients_of_frozen_weights() -> None:
    model = LlamaForCausalLM(config(False))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    expected = flops_per_token(model.config, *sizes(adapted), LENGTH) + not_needed(model.config)
    assert counted(adapted) == pytest.approx(expected, rel=0.04)  # the first layer's input needs no gradient


@pytest.mark.parametrize(("mode", "share"), [("full", 1.0), ("selective", 0.5)])
def test_recomputation_adds_the_forward_pass_of_the_layers(mode: str, share: float) -> None:
    model = LlamaForCausalLM(config(False)).train()
    plain = counted(model)
    set_recompute(model, mode)  # type: ignore[arg-type]
    model.train()
    added = recomputed_flops_per_token(model.config, sizes(model)[0], LENGTH, share, all_trained=True)
    pairs = share * 2 * model.config.num_hidden_layers * model.config.hidden_size * LENGTH
    assert counted(model) - plain == pytest.approx(added + pairs, rel=0.01)


def test_recomputation_under_adapters_computes_the_last_product_too() -> None:
    model = LlamaForCausalLM(config(False)).train()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(True)  # so that the first layer's input needs a gradient, with or without
    plain = counted(adapted)
    set_recompute(model, "full")
    model.train()
    frozen = sizes(adapted)[0] - sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    added = recomputed_flops_per_token(model.config, frozen, LENGTH)
    pairs = 2 * model.config.num_hidden_layers * model.config.hidden_size * LENGTH
    assert counted(adapted) - plain == pytest.approx(added + pairs, rel=0.06)  # and the adapters' own products


def test_a_device_is_known_by_its_name() -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert [peak_flops(f"NVIDIA {name}") for name in ("L40S", "L40", "L4", "A10G", "A10")] == [
        362e12, 181e12, 121e12, 70e12, 125e12,
    ]  # fmt: skip
    assert peak_flops("a toaster") is None
