"""Proof, on the very model and kernels of a run, that packed documents do not see one another.

Attention is cut at the documents' boundaries, or masked from restarted positions; an architecture can ignore both (its
own masks, a recurrence or a convolution over the whole row), and nothing fails: the loss is merely another one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distributed_ft.config.schema import ModelConfig
from distributed_ft.errors import ConfigError

_LENGTH = 12  # tokens of each of the two documents
_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # relative; a document that is seen changes the loss by much more


@dataclass(frozen=True)
class _Documents:
    """See `distributed_ft.model.token_loss.Documents`."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    supervised: Tensor
    targets: Tensor


def check_isolation(
    token_loss: nn.Module,
    call: Callable[[_Documents], Tensor],
    config: ModelConfig,
    device: torch.device,
    coarse: bool = False,
) -> None:
    """Compare the loss of the first tokens of a document alone and behind two different others. A collective.

    Args:
        token_loss: the TokenLoss of the run, which is in training mode before and after.
        call: the module to call: `token_loss`, wrapped by the strategy.
        config: which base, for the message, and its dtype.
        device: where it runs.
        coarse: other documents may change how a document is rounded, and no more: see `quantized.rounds_together`.

    Raises ConfigError when the losses differ, or the architecture cannot be run on packed documents at all.
    """
    token_loss.eval()
    try:
        with torch.no_grad():
            losses = [float(call(_documents(before, device))) for before in (None, 3, 5)]
    except (TypeError, AttributeError, NotImplementedError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.base: {config.base}: this architecture cannot be trained on packed documents: "
            f"{type(error).__name__}: {error}; use another base, or model.attention: eager"
        ) from error
    finally:
        token_loss.train()
    alone, *behind = losses
    tolerance = _TOLERANCE["bf16" if coarse else config.dtype]
    if any(abs(loss - alone) > tolerance * abs(alone) for loss in behind):
        raise ConfigError(
            f"model.base: {config.base}: documents that are packed into one sequence would see one another in this "
            f"architecture with attention: {config.attention} (loss of a document alone {alone:.5g}, behind others "
            f"{behind[0]:.5g} and {behind[1]:.5g}); try model.attention: eager, or use another base"
        )


def _documents(before: int | None, device: torch.device) -> _Documents:
    """A document whose first tokens are targets, alone or behind one that repeats the token `before`."""
    second = 1 + torch.arange(_LENGTH) % 7
    first = torch.empty(0, dtype=torch.long) if before is None else torch.full((_LENGTH,), before)
    start = len(first)
    targets = torch.arange(3)  # the first tokens of a document have the least of their own to look at
    lengths = [len(first), len(second)] if start else [len(second)]
    return _Documents(
        input_ids=torch.cat([first, second])[None].to(device),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None].to(device),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device),
        max_seqlen=max(lengths),
        supervised=(start + targets).to(device),
        targets=second[targets + 1].to(device),
    )
