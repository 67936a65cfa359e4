"""Packing against brute force, its theoretical bound, and what must never happen: a loss, a double, an overflow."""

import math
import random

from distributed_ft.data.packing import one_each, pack


def best_fit_decreasing(lengths, seq_len):
    """The textbook's quadratic version."""
    groups, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [g for g in range(len(groups)) if room[g] >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda g: room[g])
        else:
            best = len(groups)
            groups.append([])
            room.append(seq_len)
        groups[best].append(index)
        room[best] -= lengths[index]
    return groups


def optimum(lengths, seq_len):
    """Fewest groups, by exhaustion."""
    best = len(lengths)

    def place(index, rooms):
        nonlocal best
        if len(rooms) >= best:
            return
        if index == len(lengths):
            best = len(rooms)
            return
        for g in range(len(rooms)):
            if rooms[g] >= lengths[index]:
                place(index + 1, [*rooms[:g], rooms[g] - lengths[index], *rooms[g + 1 :]])
        place(index + 1, [*rooms, seq_len - lengths[index]])

    place(0, [])
    return best


def random_lengths(rng):
    seq_len = rng.choice([1, 7, 64, 512])
    return [rng.randint(1, seq_len) for _ in range(rng.randint(0, 60))], seq_len


def test_nothing_is_lost_or_doubled_and_no_group_overflows():
    rng = random.Random(0)
    for _ in range(300):
        lengths, seq_len = random_lengths(rng)
        groups = pack(lengths, seq_len)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        assert all(0 < sum(lengths[i] for i in group) <= seq_len for group in groups)


def test_it_fills_as_the_textbook_best_fit_decreasing_does():
    rng = random.Random(1)
    for _ in range(200):
        lengths, seq_len = random_lengths(rng)
        fills = [
            sorted(sum(lengths[i] for i in group) for group in method(lengths, seq_len))
            for method in (pack, best_fit_decreasing)
        ]
        assert len(fills[0]) == len(fills[1])
        assert fills[0] == fills[1]


def test_it_stays_within_the_bound_of_the_optimum():
    rng = random.Random(2)
    for _ in range(60):
        lengths = [rng.randint(1, 20) for _ in range(rng.randint(1, 8))]
        best = optimum(lengths, 20)
        assert math.ceil(sum(lengths) / 20) <= best <= len(pack(lengths, 20)) <= 11 / 9 * best + 6 / 9


def test_it_is_deterministic_and_equal_lengths_keep_their_order():
    lengths = [3, 5, 3, 5, 3]
    assert pack(lengths, 8) == pack(tuple(lengths), 8) == [[1, 2], [3, 0], [4]]


def test_the_number_of_groups_does_not_depend_on_the_order_of_the_rows():
    rng = random.Random(3)
    for _ in range(50):
        lengths, seq_len = random_lengths(rng)
        shuffled = rng.sample(lengths, len(lengths))
        assert len(pack(lengths, seq_len)) == len(pack(shuffled, seq_len))


def test_without_packing_each_document_has_its_own_sequence():
    assert one_each(3) == [[0], [1], [2]]
