"""The model as the trainer sees it: a micro-batch goes in, the summed loss of its supervised tokens comes out.

A model reads the documents of a micro-batch side by side in one row, without padding. With virtual tokens in front of
each (prefix and prompt tuning) every document has a row of its own, padded on its right, where nothing that counts
looks.

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

    def __init__(
        self, model: nn.Module, autocast: torch.dtype | None = None, neftune_alpha: float | None = None
    ) -> None:
        """`model` is a transformers causal LM, bare or wrapped by PEFT; `autocast` the compute dtype, None for none;
        `neftune_alpha`: see `noisy`."""
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.neftune_alpha = neftune_alpha
        if autocast is not None:  # so that the residual stream has the compute dtype, however weights are stored
            _causal_lm(model).get_input_embeddings().register_forward_hook(lambda _, __, out: out.to(autocast))
        # How many blocks of logits the head makes, from how many this rank needs; the same on every rank where each
        # block is a collective (ZeRO-3 gathers the head's weight for it).
        self.agree_on_blocks: Callable[[int], int] = lambda blocks: blocks

    def forward(self, batch: Documents) -> Tensor:
        device = batch.input_ids.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            causal_lm = _causal_lm(self.model)
            head = causal_lm.get_output_embeddings()
            in_rows = _has_virtual_tokens(self.model)
            inputs, kept = _rows(batch, self.model, causal_lm) if in_rows else (_packed(batch), batch.supervised)
            if self.neftune_alpha is not None and self.training:
                embedded = causal_lm.get_input_embeddings()(inputs.pop("input_ids"))
                inputs["inputs_embeds"] = noisy(embedded, batch.cu_seqlens, self.neftune_alpha)
            # A rank without targets still runs a backward pass, with a gradient of zero for every parameter.
            if not _plain_head(head, causal_lm):
                return _loss_of_whole_model(causal_lm, inputs, kept, batch.targets, in_rows)
            hidden: Tensor = causal_lm.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)
            rows = max(1, LOGITS_AT_ONCE // causal_lm.config.get_text_config().vocab_size)
            blocks = self.agree_on_blocks(max(1, -(-len(batch.targets) // rows)))
            return _linear_cross_entropy(hidden[kept], head, batch.targets, rows, blocks)


def noisy(embedded: Tensor, cu_seqlens: Tensor, alpha: float) -> Tensor:
    """NEFTune (Jain et al. 2023, arXiv:2310.05914, algorithm 1): embeddings with noise from this rank's own generator.

    Args:
        embedded: (1, T, width).
        cu_seqlens: (documents + 1,), where each document begins, and T.
        alpha: each document of L tokens gets noise in +-alpha / sqrt(L * width).
    """
    lengths = cu_seqlens.diff().long()
    scale = alpha / (lengths * embedded.shape[-1]).sqrt()
    noise = torch.rand_like(embedded) * 2 - 1
    return embedded + noise * scale.repeat_interleave(lengths)[None, :, None].to(embedded.dtype)


def _packed(batch: Documents) -> dict[str, Any]:
    """The decoder's arguments for one row of documents side by side."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
    }


def _rows(batch: Documents, model: Any, causal_lm: Any) -> tuple[dict[str, Any], Tensor]:
    """The decoder's arguments for one row a document, and where the supervised positions are among all rows' outputs.

    `model` is PEFT's. It gives the virtual tokens as a cache of keys and values (prefix), or as embeddings (prompt).
    """
    lengths, device = batch.cu_seqlens.diff().long(), batch.input_ids.device
    num_documents, longest = len(lengths), batch.max_seqlen
    row, column = torch.arange(num_documents, device=device).repeat_interleave(lengths), batch.position_ids[0]
    ids = torch.zeros(num_documents, longest, dtype=torch.long, device=device)
    ids[row, column] = batch.input_ids[0]
    virtual = model.get_prompt(batch_size=num_documents)
    if not isinstance(virtual, Tensor):
        kept = row[batch.supervised] * longest + column[batch.supervised]
        return {"input_ids": ids, "past_key_values": virtual, "use_cache": False}, kept
    embedded = causal_lm.get_input_embeddings()(ids)
    embedded = torch.cat([virtual.to(embedded.dtype), embedded], dim=1)
    before = virtual.shape[1]
    kept = row[batch.supervised] * (before + longest) + before + column[batch.supervised]
    return {"inputs_embeds": embedded, "use_cache": False}, kept


def _loss_of_whole_model(
    causal_lm: Any, inputs: dict[str, Any], kept: Tensor, targets: Tensor, in_rows: bool
) -> Tensor:
    """For a head that is more than a product: the model makes the logits itself, of rows those of every position."""
    keep = (kept if len(targets) else 1) if not in_rows else 0
    logits: Tensor = causal_lm(**inputs, logits_to_keep=keep).logits.flatten(0, 1)
    if not len(targets):
        return logits[:1].float().sum() * 0.0
    return F.cross_entropy((logits[kept] if in_rows else logits).float(), targets, reduction="sum")


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


def _has_virtual_tokens(model: Any) -> bool:
    config = getattr(model, "active_peft_config", None)
    return config is not None and config.is_prompt_learning


def _plain_head(head: nn.Module | None, causal_lm: Any) -> TypeGuard[nn.Linear]:
    """Whether logits are exactly `head(hidden)`: no scale, no soft-cap, not an adapted head."""
    config = causal_lm.config.get_text_config()
    altered = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    return type(head) is nn.Linear and all(getattr(config, key, None) in (None, 1.0) for key in altered)
