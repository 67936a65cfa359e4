"""Documents into sequences: best-fit-decreasing bin packing."""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, seq_len: int) -> list[list[int]]:
    """Indices of `lengths` (tokens, 1 to `seq_len` each) in groups whose sum is at most `seq_len`.

    Longest first, each into the fullest group that has room; equal lengths keep their order. At most
    11/9 * optimum + 6/9 groups (Dósa 2007 for first-fit-decreasing, whose bound best-fit-decreasing shares).
    The number of groups depends on the multiset of lengths only. Time: O(n log n) for the sort, then one
    find-first-set per document in a bit mask of `seq_len` bits (bit r set: some group has room for r more tokens).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    assert sizes.size == 0 or (sizes.min() >= 1 and sizes.max() <= seq_len), "lengths must be in 1..seq_len"
    groups: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]  # free tokens -> groups, a stack each
    mask = 0
    order = np.argsort(-sizes, kind="stable")
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = mask >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            stack = by_room[room]
            group = stack.pop()
            if not stack:
                mask ^= 1 << room
            groups[group].append(index)
        else:
            room, group = seq_len, len(groups)
            groups.append([index])
        left = room - size
        if left:
            by_room[left].append(group)
            mask |= 1 << left
    return groups


def one_each(num_documents: int) -> list[list[int]]:
    """`packing: false`: one document a sequence."""
    return [[index] for index in range(num_documents)]
