"""Tensors of a step: the same tokens and targets for every world size, and no target from another document."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from distributed_ft.data.batches import cost, deal, micro_batch, micro_batches, validation_batches
from distributed_ft.data.order import Order

LENGTHS = [[5, 9, 3, 14, 2, 7, 16, 1, 8, 11, 4] * 3]


@pytest.fixture
def order(make_prepared):
    prepared = make_prepared(LENGTHS)
    return Order(prepared, seed=0, seq_len=16, packing=True, global_batch_size=7, epochs=1)


def documents(batch):
    """Token lists of the documents of a micro-batch."""
    bounds = batch.cu_seqlens.tolist()
    return [batch.input_ids[0, a:b].tolist() for a, b in pairwise(bounds)]


def contents(batches):
    """(documents, (context token, target) pairs) of all micro-batches, without the fillers."""
    docs, pairs = Counter(), Counter()
    for batch in batches:
        if batch.num_tokens > 1 or batch.num_supervised:
            docs.update(tuple(d) for d in documents(batch))
        context = batch.input_ids[0, batch.supervised].tolist()
        pairs.update(zip(context, batch.targets.tolist(), strict=True))
    return docs, pairs


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_the_global_batch_does_not_depend_on_the_world_size(order, world_size, micro_batch_size):
    assert len(order.global_batch(order.total_steps - 1)) < 7, "the last batch is short"
    for step in range(order.total_steps):
        ranks = [micro_batches(order, step, rank, world_size, micro_batch_size) for rank in range(world_size)]
        docs, pairs = contents(batch for batches in ranks for batch in batches)
        expected_docs, expected_pairs = Counter(), Counter()
        for source, row in (document for pack in order.global_batch(step) for document in pack):
            tokens, supervised = (array.tolist() for array in order.prepared.train[source].example(row))
            if len(tokens) > 1:  # the one-token row of the data looks like a filler; it has no target either
                expected_docs[tuple(tokens)] += 1
            expected_pairs.update((tokens[p - 1], tokens[p]) for p in range(1, len(tokens)) if supervised[p])
        assert pairs == expected_pairs
        assert Counter({d: n for d, n in docs.items() if len(d) > 1}) == expected_docs


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_rank_has_the_same_number_of_micro_batches_and_a_fair_share(order, world_size):
    for step in range(order.total_steps):
        ranks = [micro_batches(order, step, rank, world_size, 2) for rank in range(world_size)]
        packs = len(order.global_batch(step))
        assert {len(batches) for batches in ranks} == {-(-packs // (2 * world_size))}


def test_positions_and_bounds_restart_at_each_document(order):
    for step in range(order.total_steps):
        for batch in micro_batches(order, step, 0, 2, 2):
            lengths = [len(d) for d in documents(batch)]
            assert batch.cu_seqlens[0] == 0
            assert batch.cu_seqlens[-1] == batch.num_tokens == batch.position_ids.shape[1]
            assert batch.max_seqlen == max(lengths)
            assert batch.position_ids[0].tolist() == [p for n in lengths for p in range(n)]
            assert batch.num_tokens <= 2 * 16
            dtypes = [batch.input_ids.dtype, batch.position_ids.dtype, batch.supervised.dtype, batch.targets.dtype]
            assert dtypes == [torch.int64] * 4
            assert batch.cu_seqlens.dtype == torch.int32


def test_targets_are_the_next_token_and_never_cross_documents(order):
    checked = 0
    for step in range(order.total_steps):
        for batch in micro_batches(order, step, 0, 1, 3):
            last = set((batch.cu_seqlens[1:] - 1).tolist())
            checked += len(last)
            assert not last & set(batch.supervised.tolist())
            assert torch.equal(batch.input_ids[0, batch.supervised + 1], batch.targets)
    assert checked == 33


def test_a_rank_without_packs_gets_one_token_that_trains_nothing(order):
    filler = micro_batch(order.prepared.train, [])
    assert (filler.num_tokens, filler.num_supervised, filler.max_seqlen) == (1, 0, 1)
    assert filler.cu_seqlens.tolist() == [0, 1]
    assert filler.position_ids.tolist() == [[0]]
    ranks = [micro_batches(order, 0, rank, 16, 1) for rank in range(16)]
    assert sum(batches[0].num_supervised == 0 and batches[0].num_tokens == 1 for batches in ranks) >= 16 - 7


def test_validation_covers_every_row_once_on_any_number_of_ranks(order):
    store = order.prepared.train[0]
    reference = contents(validation_batches(store, 16, 0, 1, 2))
    assert sum(reference[0].values()) == len(store)
    for world_size in (2, 3, 4):
        ranks = [list(validation_batches(store, 16, rank, world_size, 2)) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        assert contents(batch for batches in ranks for batch in batches)[1] == reference[1]


def test_moving_a_batch_keeps_its_content(order):
    batch = micro_batches(order, 0, 0, 1, 2)[0]
    moved = batch.to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids)
    assert moved.max_seqlen == batch.max_seqlen


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_ranks_that_wait_for_one_another_have_equally_much_to_do(world_size, micro_batch_size):
    rng = np.random.default_rng(world_size * 10 + micro_batch_size)
    costs = [cost(int(n)) for n in np.clip(rng.lognormal(5, 1, size=128), 1, 2048)]
    dealt = deal(costs, world_size, micro_batch_size)
    assert sorted(i for hands in dealt for hand in hands for i in hand) == list(range(128)), "each pack once"
    assert all(len(hand) <= micro_batch_size for hands in dealt for hand in hands)

    def waited(hands_of_steps):
        """What the step takes (the slowest rank of each micro-batch) over what it would take if all were equal."""
        steps = [[sum(costs[i] for i in hand) for hand in hands] for hands in hands_of_steps]
        return sum(max(loads) for loads in steps) * world_size / sum(costs)

    per_rank = 128 // world_size
    in_order = [
        [
            range(rank * per_rank + k, min(rank * per_rank + k + micro_batch_size, (rank + 1) * per_rank))
            for rank in range(world_size)
        ]
        for k in range(0, per_rank, micro_batch_size)
    ]
    assert waited(dealt) - 1 < 0.5 * (waited(in_order) - 1)


def test_one_rank_keeps_the_order():
    assert deal([5.0, 1.0, 3.0, 2.0, 4.0], 1, 2) == [[[0, 1]], [[2, 3]], [[4]]]


def test_a_long_document_costs_more_than_its_tokens():
    assert cost(0) == 0
    assert cost(49_152) == 2 * 49_152
    assert cost(200) < 2 * cost(100) * 1.01
