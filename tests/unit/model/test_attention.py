"""Attention that is cut at document boundaries equals attention under an explicit block mask."""

import shutil

import pytest
import torch
from support.tiny import make_model
from torch import Tensor

from distributed_ft.config.schema import ModelConfig
from distributed_ft.data.batches import MicroBatch
from distributed_ft.model.attention import FLEX, PACKED_SDPA, implementation, packed_sdpa, problem
from distributed_ft.model.token_loss import TokenLoss

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
    assert implementation(choice("flex"), device, model) == FLEX


def test_flex_takes_what_sdpa_refuses_and_refuses_dropout() -> None:
    assert problem(choice("flex"), make_model("gemma2")) is None
    assert "does not work with sdpa" in str(problem(choice("sdpa"), make_model("gemma2")))
    assert "dropout in its attention" in str(problem(choice("flex"), make_model("llama", attention_dropout=0.1)))


@pytest.mark.slow  # compiles for a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles flex_attention with a C++ compiler")
@pytest.mark.parametrize(
    ("architecture", "other"), [("llama", PACKED_SDPA), ("mistral", PACKED_SDPA), ("gemma2", "eager")]
)
def test_flex_isolates_documents_as_the_others_do(architecture: str, other: str) -> None:
    """Forward only: there is no backward pass on a CPU."""
    model = make_model(architecture, head_dim=16)
    ids, positions = torch.arange(3, 53)[None], torch.cat([torch.arange(20), torch.arange(30)])[None]
    at = torch.arange(49)
    batch = MicroBatch(ids, positions, torch.tensor([0, 20, 50], dtype=torch.int32), 30, at, ids[0, at + 1])
    losses = []
    for used in (FLEX, other):
        model.set_attn_implementation(used)
        with torch.no_grad():
            losses.append(TokenLoss(model)(batch))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


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
