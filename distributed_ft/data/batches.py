"""Packs of rows into the tensors of a forward pass: padding-free, one row of concatenated documents.

A global batch is dealt evenly over the ranks, and every rank gets the same number of micro-batches, so that ranks
meet in the same collectives. Which rank has which pack changes nothing but rounding: the loss is a sum over the
supervised tokens of all ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distributed_ft.data.order import Order, Pack
from distributed_ft.data.packing import pack
from distributed_ft.data.store import TokenStore


@dataclass(frozen=True)
class MicroBatch:
    """D documents of T tokens in all, of which S are targets. No target is in another document than its context."""

    input_ids: torch.Tensor  # int64 [1, T]
    position_ids: torch.Tensor  # int64 [1, T], from 0 in each document
    cu_seqlens: torch.Tensor  # int32 [D + 1], where each document begins; the last entry is T
    max_seqlen: int  # tokens of the longest document
    supervised: torch.Tensor  # int64 [S], positions in 0..T-1 whose next token is a target
    targets: torch.Tensor  # int64 [S], that next token

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]

    @property
    def num_supervised(self) -> int:
        """S."""
        return self.targets.shape[0]

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same batch on a device; a copy from pinned memory does not wait."""
        return MicroBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            max_seqlen=self.max_seqlen,
            supervised=self.supervised.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
        )


def micro_batches(order: Order, step: int, rank: int, world_size: int, micro_batch_size: int) -> list[MicroBatch]:
    """This rank's part of a step's global batch; as many micro-batches as every other rank has."""
    packs = order.global_batch(step)
    return list(_dealt(order.prepared.train, packs, rank, world_size, micro_batch_size))


def validation_batches(
    store: TokenStore, seq_len: int, rank: int, world_size: int, micro_batch_size: int
) -> Iterator[MicroBatch]:
    """This rank's part of all rows of a store, packed; as many micro-batches as every other rank has."""
    packs = [tuple((0, row) for row in group) for group in pack(store.lengths, seq_len)]
    return _dealt((store,), packs, rank, world_size, micro_batch_size)


def micro_batch(stores: Sequence[TokenStore], packs: Sequence[Pack]) -> MicroBatch:
    """The documents of `packs` side by side; for no packs, one token that is no target and has no effect."""
    tokens: list[np.ndarray] = []
    supervised: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    begin = 0
    for source, row in (document for documents in packs for document in documents):
        ids, mask = stores[source].example(row)
        at = np.flatnonzero(mask[1:])  # the first token of a document has nothing before it that could predict it
        tokens.append(ids.astype(np.int64))
        supervised.append(at + begin)
        targets.append(ids[1:][at].astype(np.int64))
        begin += len(ids)
    if not tokens:
        tokens, supervised, targets = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    lengths = [len(ids) for ids in tokens]
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(tokens))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]))[None],
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        max_seqlen=max(lengths),
        supervised=torch.from_numpy(np.concatenate(supervised)),
        targets=torch.from_numpy(np.concatenate(targets)),
    )


def _dealt(
    stores: Sequence[TokenStore], packs: Sequence[Pack], rank: int, world_size: int, micro_batch_size: int
) -> Iterator[MicroBatch]:
    """Rank r takes the r-th of `world_size` consecutive parts whose sizes differ by at most one pack."""
    assert 0 <= rank < world_size
    mine = packs[rank * len(packs) // world_size : (rank + 1) * len(packs) // world_size]
    num_micro_batches = -(-len(packs) // (world_size * micro_batch_size))
    for i in range(num_micro_batches):
        yield micro_batch(stores, mine[i * micro_batch_size : (i + 1) * micro_batch_size])
