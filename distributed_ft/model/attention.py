"""Attention over packed documents: each document attends to itself only, at the cost of its own length squared.

A micro-batch is one row of `T` tokens that holds several documents end to end. A T x T block mask would be correct and
wasteful (most of it is empty); here the row is cut at the document boundaries and torch's scaled-dot-product attention
runs on each piece. flash-attention kernels take the same boundaries natively (`cu_seq_lens_q`), so on a GPU that has
them they are used instead.

Registered through transformers' own extension point, so every architecture that uses its attention interface works.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from distributed_ft.config.schema import ModelConfig

PACKED_SDPA = "packed_sdpa"
FLEX = "flex_attention"


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of one packed row.

    Args:
        query, key, value: (1, heads or key-value heads, T, head dimension).
        attention_mask: ignored: the boundaries say all of it.
        cu_seq_lens_q: (documents + 1,) int, the documents' first positions and T.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it.

    Returns:
        (1, T, heads, head dimension), and no attention weights.
    """
    lengths = cu_seq_lens_q.diff().tolist()
    pieces = []
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        length = q.shape[2]
        band = None
        if sliding_window is not None and length > sliding_window:
            band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        pieces.append(sdpa_attention_forward(module, q, k, v, band, **kwargs)[0])
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)


def implementation(config: ModelConfig, device: torch.device, model: PreTrainedModel) -> str:
    """The transformers attention implementation for a run's `model.attention`.

    `auto` and `sdpa` both isolate documents by cutting at their boundaries; `eager` and `flex` by transformers' own
    block mask (for `flex` one that skips what is masked), which it derives from restarted position ids. `auto` falls
    back to `eager` for a model that cannot be cut. Whether it worked is proved at the start of every run
    (`distributed_ft.model.isolation`).
    """
    choice = config.attention
    if choice == "auto":
        flash = device.type == "cuda" and config.dtype == "bf16" and is_flash_attn_2_available()
        if flash and model._supports_flash_attn:
            return "flash_attention_2"
        choice = "sdpa" if can_be_cut(model) else "eager"
    return {"sdpa": PACKED_SDPA, "flex": FLEX}.get(choice, choice)


def problem(config: ModelConfig, model: PreTrainedModel) -> str | None:
    """Why this architecture cannot attend as `model.attention` says, or None."""
    name = type(model).__name__
    if config.attention == "sdpa" and not can_be_cut(model):
        return f"{name} does not work with sdpa; use auto or eager"
    if config.attention == "flex" and not model._supports_flex_attn:
        return f"{name} does not work with flex; use auto or eager"
    dropout: float = getattr(model.config.get_text_config(), "attention_dropout", None) or 0.0
    if config.attention == "flex" and dropout > 0:
        return f"{name} has dropout in its attention, which flex does not compute; use auto or eager"
    return None


def can_be_cut(model: PreTrainedModel) -> bool:
    """Whether `packed_sdpa` computes this model's attention: no capped scores or sinks, no chunks inside a document."""
    chunked = "chunked_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ())
    return bool(model._supports_sdpa) and not chunked
