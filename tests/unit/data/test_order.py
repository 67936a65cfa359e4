"""The order of the rows: a pure function of (seed, data, step); epochs complete; mixtures as asked."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from distributed_ft.data.order import Order, epoch_counts

LENGTHS = [[5, 9, 3, 14, 2, 7, 16, 1, 8, 11, 4] * 3]


def make_order(prepared, **settings):
    defaults = {"seed": 0, "seq_len": 16, "packing": True, "global_batch_size": 4, "epochs": 2}
    return Order(prepared, **{**defaults, **settings})


def rows_of_epoch(order, epoch):
    first = sum(order._steps_of(e) for e in range(epoch))
    steps = range(first, first + order._steps_of(epoch))
    return [row for step in steps for documents in order.global_batch(step) for row in documents]


@pytest.mark.parametrize("packing", [True, False])
def test_no_row_is_lost_or_doubled_within_an_epoch(make_prepared, packing):
    order = make_order(make_prepared([*LENGTHS, [3] * 10]), packing=packing)
    everything = [(0, i) for i in range(33)] + [(1, i) for i in range(10)]
    for epoch in range(3):
        assert sorted(rows_of_epoch(order, epoch)) == everything
    assert rows_of_epoch(order, 0) != rows_of_epoch(order, 1)


def test_batches_are_full_but_the_last_of_an_epoch_and_packs_fit(make_prepared):
    prepared = make_prepared(LENGTHS)
    order = make_order(prepared)
    sizes = [len(order.global_batch(step)) for step in range(order.total_steps)]
    packs = order.num_packs(0)
    one_epoch = [4] * (packs // 4) + ([packs % 4] if packs % 4 else [])
    assert sizes == one_epoch * 2
    for step in range(order.total_steps):
        for documents in order.global_batch(step):
            assert sum(prepared.train[s].lengths[i] for s, i in documents) <= 16


def test_a_batch_depends_on_seed_data_and_step_only(make_prepared):
    prepared = make_prepared(LENGTHS)
    steps = range(make_order(prepared).total_steps)
    forward = [make_order(prepared).global_batch(step) for step in steps]
    order = make_order(prepared)
    assert [order.global_batch(step) for step in reversed(steps)] == forward[::-1]
    assert [make_order(prepared, seed=1).global_batch(step) for step in steps] != forward
    other = make_prepared([[*LENGTHS[0][:-1], 5]], name="other")
    assert [make_order(other).digest(step) for step in steps] != [order.digest(step) for step in steps]


def test_the_order_is_the_same_with_every_version_of_the_code(make_prepared):
    # written down once: a change here would make a resumed run another run
    order = make_order(make_prepared([[4] * 6]), packing=False, global_batch_size=3)
    order._digest = "0" * 64
    assert [order.sample_ids(step) for step in range(4)] == [
        ["s0r4", "s0r3", "s0r1"],
        ["s0r5", "s0r2", "s0r0"],
        ["s0r1", "s0r3", "s0r5"],
        ["s0r0", "s0r4", "s0r2"],
    ]


def test_sample_ids_and_digest_stand_for_the_packs(make_prepared):
    order = make_order(make_prepared(LENGTHS))
    ids = [f"s{s}r{i}" for documents in order.global_batch(1) for s, i in documents]
    assert order.sample_ids(1) == ids
    digests = {order.digest(step) for step in range(order.total_steps)}
    assert len(digests) == order.total_steps
    assert all(len(digest) == 16 for digest in digests)


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([10, 7], None, [10, 7]),
        ([1200, 1204], [0.85, 0.15], [1199, 212]),  # 1200 / 0.85 = 1411.76
        ([1200, 1204], [85, 15], [1199, 212]),
        ([100, 100], [1, 1], [100, 100]),
        ([85, 1000], [0.85, 0.15], [85, 15]),
        ([1, 1000], [0.1, 0.9], [1, 9]),
        ([10, 10, 10], [1, 1, 1], [10, 10, 10]),
        ([3, 100], [0.7, 0.3], [3, 1]),
    ],
)
def test_an_epoch_of_a_mixture_ends_when_the_first_source_is_seen_once(sizes, weights, counts):
    assert epoch_counts(sizes, weights) == counts


def test_mixture_counts_hold_for_random_sizes_and_weights():
    rng = np.random.default_rng(0)
    for _ in range(500):
        n = int(rng.integers(1, 5))
        sizes = rng.integers(1, 500, n).tolist()
        weights = [round(float(w), 3) for w in rng.uniform(0.01, 1, n)]
        counts = epoch_counts(sizes, weights)
        total = sum(counts)
        assert total == math.floor(min(s * sum(weights) / w for s, w in zip(sizes, weights, strict=True)) + 1e-9)
        for size, weight, count in zip(sizes, weights, counts, strict=True):
            assert 0 <= count <= size
            assert abs(count - total * weight / sum(weights)) < 1


def test_a_mixture_walks_through_all_rows_of_the_larger_source_before_repeating_one(make_prepared):
    order = make_order(make_prepared([[3] * 8, [4] * 30], weights=[0.5, 0.5]))
    assert order.counts == [8, 8]
    drawn = [Counter(rows_of_epoch(order, epoch)) for epoch in range(15)]
    for counter in drawn:
        assert sum(n for (source, _), n in counter.items() if source == 1) == 8
        assert all(counter[(0, i)] == 1 for i in range(8))
    large = sum(drawn, Counter())
    assert all(large[(1, i)] == 15 * 8 // 30 for i in range(30)), "120 draws are four rounds of 30 rows"
    first_round = sum(drawn[:3], Counter())
    assert max(n for (source, _), n in first_round.items() if source == 1) == 1


@pytest.mark.parametrize(("epochs", "steps"), [(2, 6), (1, 3), (0.5, 2), (1 / 3, 1), (2.5, 8), (2.34, 8), (0.01, 1)])
def test_total_steps_rounds_a_partial_epoch_up(make_prepared, epochs, steps):
    order = make_order(make_prepared([[4] * 12]), packing=False, epochs=epochs)
    assert order.steps_per_epoch == 3
    assert order.total_steps == steps


def test_max_steps_wins_and_may_go_beyond_the_epochs(make_prepared):
    order = make_order(make_prepared([[4] * 12]), packing=False, epochs=1, max_steps=10)
    assert order.total_steps == 10
    assert len(order.global_batch(9)) == 4
    assert [order.epoch(step) for step in (0, 3, 4, 9)] == [0.0, 1.0, 4 / 3, 3.0]


def test_steps_add_up_when_epochs_of_a_mixture_differ_in_length(make_prepared):
    rng = np.random.default_rng(0)
    prepared = make_prepared([[5] * 9, rng.integers(1, 17, 40).tolist()], weights=[0.3, 0.7])
    order = make_order(prepared, global_batch_size=1, epochs=6)
    per_epoch = [make_order(prepared, global_batch_size=1)._steps_of(epoch) for epoch in range(6)]
    assert len(set(per_epoch)) > 1, "the point of this test"
    assert order.total_steps == sum(per_epoch)
    assert order.epoch(sum(per_epoch[:4])) == 4.0
    assert len(rows_of_epoch(order, 5)) == sum(order.counts)


@pytest.mark.parametrize(
    ("sizes", "fractions", "expected"),
    [
        ((80, 1000), (None, 0.2), [80, 20]),
        ((85, 3), (None, 0.15), [85, 15]),  # of the small file each row five times
        ((50, 30, 1000, 1000), (None, None, 0.1, 0.1), [50, 30, 10, 10]),
        ((1, 10), (None, 0.1), [1, 1]),  # never nothing
    ],
)
def test_a_fraction_is_of_the_whole_epoch_in_which_the_other_files_are_seen_once(sizes, fractions, expected):
    assert epoch_counts(sizes, None, fractions) == expected


def test_a_small_file_with_a_fraction_is_seen_evenly_and_a_large_one_in_turn(make_prepared):
    prepared = replace(make_prepared([[5] * 40, [3] * 4, [4] * 100]), fractions=(None, 0.1, 0.1))
    order = Order(prepared, seed=0, seq_len=16, packing=True, global_batch_size=2, epochs=20)
    assert order.counts == [40, 5, 5]
    seen = Counter(name for step in range(order.total_steps) for name in order.sample_ids(step))
    by_source = [{seen[f"s{s}r{r}"] for r in range(n)} for s, n in enumerate((40, 4, 100))]
    assert by_source == [{20}, {25}, {1}]
