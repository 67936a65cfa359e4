"""Attention that is cut at document boundaries equals attention under an explicit block mask."""

import pytest
import torch
from support.tiny import make_model
from torch import Tensor

from distributed_ft.config.schema import ModelConfig
from distributed_ft.model.attention import PACKED_SDPA, implementation, packed_sdpa

LENGTHS = (7, 1, 12, 3)
HEADS, HEAD_DIM = 4, 8


def choice(attention: str) -> ModelConfig:
    return ModelConfig(base="some-base", attention=attention)  # type: ignore[arg-type]


def block_mask(window: int | None) -> Tensor:
    """(T, T) bool: same document, not after, and inside the window."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    position = torch.arange(len(document))
    distance = position[:, None] - position[None]
    allowed = (document[:, None] == document[None]) & (distance >= 0)
    return allowed if window is None else allowed & (distance < window)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.mT) * scaling
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 5, 1, 100])
def test_values_and_gradients_equal_attention_under_a_block_mask(kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    total, scaling = sum(LENGTHS), 0.3
    shapes = [(1, heads, total, HEAD_DIM) for heads in (HEADS, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, HEADS // kv_heads
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    got, weights = packed_sdpa(
        module, *inputs, None, cu_seq_lens_q=boundaries, sliding_window=window, scaling=scaling, dropout=0.0
    )
    expected = by_hand(*inputs, block_mask(window), scaling)
    assert weights is None
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    for ours, reference in zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, reference)


def test_auto_and_sdpa_isolate_documents_on_a_cpu_and_eager_stays_eager() -> None:
    device, model = torch.device("cpu"), make_model("llama")
    assert implementation(choice("auto"), device, model) == implementation(choice("sdpa"), device, model) == PACKED_SDPA
    assert implementation(choice("eager"), device, model) == "eager"


def test_a_model_reads_no_mask_when_documents_are_cut() -> None:
    """transformers must hand over no block mask: making one costs T x T."""
    model = make_model("llama")
    model.set_attn_implementation(PACKED_SDPA)
    seen: list[Tensor | None] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
    ids = torch.arange(3, 13)[None]
    positions = torch.cat([torch.arange(4), torch.arange(6)])[None]
    boundaries = torch.tensor([0, 4, 10], dtype=torch.int32)
    model(input_ids=ids, position_ids=positions, use_cache=False, cu_seq_lens_q=boundaries)
    assert seen == [None, None]
