"""The model as the trainer sees it: a micro-batch goes in, the summed loss of its supervised tokens comes out.

This is the module that strategies wrap, so logits never leave it. They are computed only at positions that have a
target, and a block of them at a time: memory does not grow with vocabulary x prompt.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**24  # elements of the largest logits block: 64 MiB in fp32


class Documents(Protocol):
    """What the loss reads of a micro-batch: see `distributed_ft.data.batches.MicroBatch`."""

    @property
    def input_ids(self) -> Tensor: ...  # (1, T) int64
    @property
    def position_ids(self) -> Tensor: ...  # (1, T) int64, restarting at each document
    @property
    def cu_seqlens(self) -> Tensor: ...  # (documents + 1,) int32
    @property
    def max_seqlen(self) -> int: ...
    @property
    def supervised(self) -> Tensor: ...  # (S,) int64: positions whose next token is a target
    @property
    def targets(self) -> Tensor: ...  # (S,) int64


class TokenLoss(nn.Module):
    """`loss = TokenLoss(model, autocast)(micro_batch)`: sum over supervised tokens of -log p(target), fp32 scalar."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        """`model` is a transformers causal LM, bare or wrapped by PEFT; `autocast` the compute dtype, None for none."""
        super().__init__()
        self.model = model
        self.autocast = autocast
        # How many blocks of logits the head makes, from how many this rank needs; the same on every rank where each
        # block is a collective (ZeRO-3 gathers the head's weight for it).
        self.agree_on_blocks: Callable[[int], int] = lambda blocks: blocks

    def forward(self, batch: Documents) -> Tensor:
        device = batch.input_ids.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            inputs = {
                "input_ids": batch.input_ids,
                "position_ids": batch.position_ids,
                "use_cache": False,
                "cu_seq_lens_q": batch.cu_seqlens,
                "cu_seq_lens_k": batch.cu_seqlens,
                "max_length_q": batch.max_seqlen,
                "max_length_k": batch.max_seqlen,
            }
            causal_lm = _causal_lm(self.model)
            head = causal_lm.get_output_embeddings()
            # A rank without targets still runs a backward pass, with a gradient of zero for every parameter.
            if not _plain_head(head, causal_lm):
                keep = batch.supervised if len(batch.targets) else 1
                logits: Tensor = self.model(**inputs, logits_to_keep=keep).logits[0].float()
                if not len(batch.targets):
                    return logits.sum() * 0.0
                return F.cross_entropy(logits, batch.targets, reduction="sum")
            hidden: Tensor = causal_lm.get_decoder()(**inputs).last_hidden_state[0]
            rows = max(1, LOGITS_AT_ONCE // causal_lm.config.get_text_config().vocab_size)
            blocks = self.agree_on_blocks(max(1, -(-len(batch.targets) // rows)))
            return _linear_cross_entropy(hidden[batch.supervised], head, batch.targets, rows, blocks)


def _linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, rows: int, blocks: int) -> Tensor:
    """Sum of the cross entropies of `head(hidden)` against `targets`, in blocks whose logits are recomputed.

    Args:
        hidden: (S, hidden size).
        head: hidden size -> vocabulary.
        targets: (S,).
        rows: positions in a block; the last ones may have less, or none.
        blocks: how many, at least S / rows.

    The logits of a block are made, used and freed in the forward pass, and made again in the backward pass
    (`torch.utils.checkpoint`). A batch that fits in one block is computed plainly.
    """
    if blocks == 1:
        return _cross_entropy(hidden, head, targets)
    cuts = [(i * rows, (i + 1) * rows) for i in range(blocks)]
    losses = [
        checkpoint(_cross_entropy, hidden[a:b], head, targets[a:b], use_reentrant=False, preserve_rng_state=False)
        for a, b in cuts
    ]
    return torch.stack(losses).sum()


def _cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return F.cross_entropy(_logits(hidden, head), targets, reduction="sum")


def _logits(hidden: Tensor, head: nn.Linear) -> Tensor:
    logits: Tensor = head(hidden)
    return logits.float()


def _causal_lm(model: nn.Module) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def _plain_head(head: nn.Module | None, causal_lm: Any) -> TypeGuard[nn.Linear]:
    """Whether logits are exactly `head(hidden)`: no scale, no soft-cap, not an adapted head."""
    config = causal_lm.config.get_text_config()
    altered = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    return type(head) is nn.Linear and all(getattr(config, key, None) in (None, 1.0) for key in altered)
