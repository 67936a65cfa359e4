"""Packs of rows into the tensors of a forward pass: padding-free, one row of concatenated documents.

A global batch is dealt over the ranks so that they work equally long, and every rank gets the same number of
micro-batches, so that ranks meet in the same collectives. Which rank has which pack changes nothing but rounding: the
loss is a sum over the supervised tokens of all ranks.
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
    assert 0 <= rank < world_size
    costs = [sum(cost(int(stores[source].lengths[row])) for source, row in documents) for documents in packs]
    for hands in deal(costs, world_size, micro_batch_size):
        yield micro_batch(stores, [packs[i] for i in hands[rank]])


def cost(length: int) -> float:
    """What a document of `length` tokens costs, in tokens of a short one.

    Of a decoder layer of width d, a token takes 24 d^2 FLOPs in its matrices and 2 d per token before it in attention
    (Narayanan et al. 2021, arXiv:2104.04473, eq. 2, causal), so 1 + length / (12 d) as much as a short one; d = 4,096.
    """
    return length * (1 + length / 49_152)


def deal(costs: Sequence[float], world_size: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Which of the packs with these `costs` each rank has in each micro-batch: [micro-batch][rank] -> indices.

    Ranks wait for one another in every micro-batch, so what they do at the same time must cost the same: packs are
    taken in the order of their cost, `world_size * micro_batch_size` at a time, and of these each goes to the rank
    that has least to do yet (Graham 1969, longest processing time first). One rank waits for nobody, and keeps the
    order.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i]) if world_size > 1 else list(range(len(costs)))
    total = [0.0] * world_size  # over all micro-batches, for those that cost the same
    dealt = []
    for first in range(0, len(order), world_size * micro_batch_size):
        block = order[first : first + world_size * micro_batch_size]
        hands: list[list[int]] = [[] for _ in range(world_size)]
        load = [0.0] * world_size
        for index in block:
            having_room = (r for r in range(world_size) if len(hands[r]) < micro_batch_size)
            rank = min(having_room, key=lambda r: (load[r], total[r], r))
            hands[rank].append(index)
            load[rank] += costs[index]
            total[rank] += costs[index]
        dealt.append(hands)
    return dealt
