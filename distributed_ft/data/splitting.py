"""Which rows go to which split: by the hash of their content, whole groups at a time. Pure.

Rows are tied when they have the same content, the same prompt, the same key (a user, a conversation), or are
near-duplicates; what is tied, directly or over others, is a group, and no group straddles two splits. A group goes
where the hash of its first row's key points, else of its prompt, else of its content: that depends on no other group,
so more rows move none. What more rows can do is *join* groups. Hence the splits of an earlier run are given as
`known`: old rows keep theirs, new ones follow them, and a new row that is tied to old rows in two splits is left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distributed_ft.data.similar import Labels, unite

SPLITS = ("train", "validation", "test")
DUPLICATE, NEAR, BRIDGE = -1, -2, -3  # instead of a split: why a row is in none
UNKNOWN = -1  # in `known`: a new row

Hashes = npt.NDArray[np.uint64]
Placed = npt.NDArray[np.int8]  # indices into SPLITS, or one of the above


@dataclass(frozen=True)
class Ties:
    """What may tie n rows to each other, each [n]; equal entries are tied."""

    ids: Hashes  # of the content
    prompts: Hashes  # 0: none
    keys: Hashes  # 0: none
    near: Labels  # cluster of near-duplicates

    def of(self, rows: Labels) -> "Ties":
        """Those of some of the rows."""
        return Ties(self.ids[rows], self.prompts[rows], self.keys[rows], self.near[rows])


def groups(ties: Ties) -> Labels:
    """For each row the lowest row of its group, int64 [n]."""
    return unite(len(ties.ids), [_same(ties.ids), _same(ties.prompts), _same(ties.keys), _same(ties.near, none=-1)])


def place(ties: Ties, group: Labels, known: Placed, shares: Sequence[float], drop_near: bool = False) -> Placed:
    """Where each row goes, int8 [n]. `known`: the split of each old row, else UNKNOWN; `shares` sum to 1.

    Of rows with the same content the first is kept, or the one that is known; of near-duplicates too, if `drop_near`.
    """
    fresh = _by_hash(ties, shares)
    old = np.full(len(group), len(SPLITS), np.int8), np.full(len(group), UNKNOWN, np.int8)
    np.minimum.at(old[0], group[known >= 0], known[known >= 0])
    np.maximum.at(old[1], group[known >= 0], known[known >= 0])
    placed = np.where(old[1][group] >= 0, old[1][group], fresh[group])
    removed = _removed(ties, known, drop_near)
    placed[removed < 0] = removed[removed < 0]
    torn = (old[1] >= 0) & (old[0] != old[1])
    rows_of_torn = np.flatnonzero(torn[group] & (removed == 0))
    order = rows_of_torn[np.argsort(group[rows_of_torn], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        _settle(placed, rows, ties, known, shares)
    return placed


def straddling(ties: Ties, placed: Placed) -> int:
    """How many groups have kept rows in two splits: 0, unless rows of an earlier run were tied only later."""
    kept = np.flatnonzero(placed >= 0)
    group = groups(ties.of(kept))
    low, high = np.full(len(kept), len(SPLITS), np.int8), np.full(len(kept), UNKNOWN, np.int8)
    np.minimum.at(low, group, placed[kept])
    np.maximum.at(high, group, placed[kept])
    return int(((high >= 0) & (low != high)).sum())


def _same(values: Hashes | Labels, none: int = 0) -> tuple[Labels, Labels]:
    """Pairs of (row, first row with the same value); rows without one are in none."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    rows = np.flatnonzero(values != none)
    return rows, first[which[rows]].astype(np.int64)


def _by_hash(ties: Ties, shares: Sequence[float]) -> Placed:
    """Where each row would go if it were the first of its group."""
    anchor = np.where(ties.keys != 0, ties.keys, np.where(ties.prompts != 0, ties.prompts, ties.ids))
    bounds = np.cumsum(shares)[:-1]
    return np.searchsorted(bounds, anchor / 2.0**64, side="right").astype(np.int8)


def _removed(ties: Ties, known: Placed, drop_near: bool) -> Placed:
    """DUPLICATE or NEAR for the rows that another stands for, else 0."""
    removed = np.zeros(len(known), np.int8)
    rows, first = _same(ties.ids, none=-1)
    removed[rows[rows != first]] = DUPLICATE
    if not drop_near:
        return removed
    left = np.flatnonzero(removed == 0)
    left = left[np.argsort(known[left] < 0, kind="stable")]  # old rows first: they were kept before
    rows, first = _same(ties.near[left], none=-1)
    standing_in = (rows != first) & (known[left[rows]] < 0)
    removed[left[rows[standing_in]]] = NEAR
    return removed


def _settle(placed: Placed, rows: Labels, ties: Ties, known: Placed, shares: Sequence[float]) -> None:
    """Place, in a group that has old rows in several splits, each new row with those that it is tied to itself.

    A new row that is tied to two splits is left out; one that is tied to none, now that those are out, is a group anew.
    """
    held: dict[tuple[str, int], set[int]] = defaultdict(set)
    waiting = []
    for row in rows.tolist():
        if known[row] < 0:
            waiting.append(row)
            continue
        placed[row] = known[row]
        for tie in _ties_of(ties, row):
            held[tie].add(int(known[row]))
    while waiting:
        apart = []
        for row in waiting:
            touched = {split for tie in _ties_of(ties, row) for split in held.get(tie, ())}
            if not touched:
                apart.append(row)
                continue
            placed[row] = touched.copy().pop() if len(touched) == 1 else BRIDGE
            if len(touched) == 1:
                for tie in _ties_of(ties, row):
                    held[tie] |= touched
        if len(apart) == len(waiting):
            rest = np.array(apart, np.int64)
            part = ties.of(rest)
            placed[rest] = _by_hash(part, shares)[groups(part)]
            return
        waiting = apart


def _ties_of(ties: Ties, row: int) -> Iterable[tuple[str, int]]:
    yield "near", int(ties.near[row])
    for name, values in (("prompt", ties.prompts), ("key", ties.keys)):
        if values[row]:
            yield name, int(values[row])
