"""Splits by brute force: no group straddles, no old row moves, whatever is added where."""

import random

import numpy as np
import pytest

from distributed_ft.data.splitting import BRIDGE, DUPLICATE, NEAR, UNKNOWN, Ties, groups, place, straddling

SHARES = (0.8, 0.1, 0.1)


def ties(rows):
    """Of rows (content, prompt, key, cluster): small numbers, spread over 64 bits; the cluster is a name."""
    spread = lambda number: number and (number * 0x9E3779B97F4A7C15 + 1) % 2**64  # noqa: E731
    ids, prompts, keys, near = zip(*rows, strict=True)
    labels = [near.index(n) for n in near]
    hashed = [np.array([spread(v) for v in values], np.uint64) for values in (ids, prompts, keys)]
    return Ties(*hashed, np.array(labels, np.int64))


def new(rows):
    return np.full(len(rows), UNKNOWN, np.int8)


def placed(rows, known=None, **options):
    tied = ties(rows)
    return place(tied, groups(tied), new(rows) if known is None else known, SHARES, **options)


def tied(a, b):
    return a[0] == b[0] or (a[1] and a[1] == b[1]) or (a[2] and a[2] == b[2]) or a[3] == b[3]


def random_rows(r, size, first=1):
    rows, prompts, keys = [], size, max(size // 4, 1)
    for i in range(size):
        content = first + i
        prompt = r.randrange(1, prompts * 3) if r.random() < 0.9 else 0
        rows.append((content, prompt, r.choice([0, r.randrange(1, keys * 9)]), f"n{r.randrange(size * 4)}"))
    return rows


def components(rows):
    label = list(range(len(rows)))
    for _ in rows:
        for a in range(len(rows)):
            for b in range(a):
                if tied(rows[a], rows[b]):
                    label[a] = label[b] = min(label[a], label[b])
    return label


def test_groups_are_the_components_of_brute_force():
    r = random.Random(0)
    for _ in range(15):
        rows = random_rows(r, r.randrange(1, 14))
        assert groups(ties(rows)).tolist() == components(rows)


def test_groups_never_straddle_splits():
    r = random.Random(1)
    for _ in range(30):
        rows = random_rows(r, 60)
        splits = placed(rows)
        assert set(splits.tolist()) <= {0, 1, 2}
        for i, a in enumerate(rows):
            for j in range(i):
                assert not tied(a, rows[j]) or splits[i] == splits[j]
        assert straddling(ties(rows), splits) == 0


def test_rows_without_ties_to_the_old_move_none_wherever_they_are_added_and_nothing_is_known():
    r = random.Random(2)
    rows = random_rows(r, 200)
    before = {row[0]: split for row, split in zip(rows, placed(rows).tolist(), strict=True)}
    more = [(10_000 + i, 10_000 + i, 0, f"m{i}") for i in range(200)]
    for mixed in (more + rows, rows + more, [row for pair in zip(rows, more, strict=True) for row in pair]):
        after = dict(zip([row[0] for row in mixed], placed(mixed).tolist(), strict=True))
        assert {content: after[content] for content in before} == before


def test_old_rows_keep_their_split_and_new_ones_follow_whatever_ties_them():
    r = random.Random(3)
    bridges = 0
    for _ in range(60):
        old = random_rows(r, 50)
        before = dict(zip([row[0] for row in old], placed(old).tolist(), strict=True))
        rows = old + random_rows(r, 50, first=1000)  # the same prompts, keys and clusters: many ties, many bridges
        r.shuffle(rows)
        known = np.array([before.get(row[0], UNKNOWN) for row in rows], np.int8)
        after = placed(rows, known)
        for i, a in enumerate(rows):
            assert a[0] not in before or after[i] == before[a[0]]
            straight = {before[b[0]] for b in rows if b[0] in before and tied(a, b)}
            if after[i] == BRIDGE:
                bridges += 1
                assert a[0] not in before
                continue
            assert len(straight) <= 1
            for j in range(i):
                if after[j] >= 0 and tied(a, rows[j]):
                    assert after[i] == after[j]
        assert straddling(ties(rows), after) == 0
        again = placed(rows, np.where(after >= 0, after, UNKNOWN).astype(np.int8))
        assert again.tolist() == after.tolist(), "a run more changes nothing"
    assert bridges > 20


def test_a_row_that_bridges_two_splits_is_left_out_and_those_behind_it_are_not():
    old = [(1, 11, 0, "a"), (2, 12, 0, "b")]
    rows = [*old, (3, 13, 0, "a"), (4, 14, 5, "a"), (5, 15, 5, "b"), (6, 16, 5, "c")]
    known = np.array([0, 2, -1, -1, -1, -1], np.int8)
    # 3 follows the first; 4 brings its conversation there; 5 is tied to both; 6 is of the conversation only
    assert placed(rows, known).tolist() == [0, 2, 0, 0, BRIDGE, 0]


def test_of_equal_rows_the_first_is_kept_and_of_near_ones_if_asked():
    rows = [(1, 1, 0, "a"), (1, 1, 9, "b"), (2, 2, 0, "c"), (3, 3, 0, "c"), (4, 4, 9, "d")]
    splits = placed(rows)
    assert splits[1] == DUPLICATE
    assert splits[2] == splits[3]
    assert splits[4] == splits[0], "the row that was dropped has tied its conversation to the one that stands for it"
    assert placed(rows, drop_near=True)[3] == NEAR
    known = np.array([-1, -1, -1, 1, -1], np.int8)
    assert placed(rows, known, drop_near=True)[2:4].tolist() == [NEAR, 1], "the one that was kept before stays"


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)])
def test_shares_are_met_within_chance(shares):
    rng = np.random.default_rng(0)
    size = 20_000
    ids = rng.integers(1, 2**64, size, dtype=np.uint64)
    none = np.zeros(size, np.uint64)
    tied = Ties(ids, none, none, np.arange(size))
    splits = place(tied, groups(tied), np.full(size, UNKNOWN, np.int8), shares)
    for split, share in enumerate(shares):
        assert abs((splits == split).mean() - share) < 4 * (0.25 / size) ** 0.5
        assert share > 0 or not (splits == split).any()


def test_no_rows_are_no_trouble():
    empty = Ties(*(np.zeros(0, np.uint64) for _ in range(3)), np.zeros(0, np.int64))
    assert place(empty, groups(empty), np.zeros(0, np.int8), SHARES).tolist() == []
