"""Rows that are there twice: the same messages, or nearly the same words.

A repeated row weighs twice in the loss, is memorised sooner (Lee et al. 2021, arXiv:2107.06499), and straddles a
later split. What most prompts of a file share (a long instruction) is left out of the comparison: rows that differ in
the item only are no duplicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed_ft.data.audit.rows import Indices, Rows, Table, joined
from distributed_ft.data.findings import Finding
from distributed_ft.data.similar import Signatures, clusters, shared, shingles, signatures

_TEMPLATE = 0.02  # share of a chunk's prompts from which on a word triple belongs to an instruction, not to an item
_LONG = 8  # triples in a row: ten words
_EVERY = 4  # prompts looked at: every fourth has what one in fifty shares
_LARGEST = 5  # clusters told of


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Of each row, the first that it repeats (itself: none)."""

    exact: Indices
    near: Indices


def templates(rows: Rows) -> frozenset[str]:
    """The word triples of the prompts' shared instructions; a turn of phrase is no instruction."""
    often = shared(rows.prompts, _TEMPLATE)
    found: set[str] = set()
    for prompt in rows.prompts[::_EVERY] if often else ():
        given = shingles(prompt)
        run = 0
        for i, shingle in enumerate([*given, ""]):
            if shingle in often:
                run += 1
            else:
                found.update(given[i - run : i] if run >= _LONG else ())
                run = 0
    return frozenset(found)


def look(rows: Rows, known: frozenset[str] = frozenset()) -> Signatures:
    """Signatures of prompt and answer, without `known` (the file's shared instructions) and the chunk's own."""
    texts = [f"{p} {a}" for p, a in zip(rows.prompts, rows.answers, strict=True)]
    return signatures(texts, known | templates(rows))


def repeated(table: Table, looked: Sequence[Signatures], threshold: float) -> Duplicates:
    """Which rows repeat which; `threshold`: Jaccard similarity of word triples."""
    exact = first_equal(table.digests)
    firsts = np.flatnonzero(exact == np.arange(table.size))
    near = np.arange(table.size)
    if len(firsts):
        minhash = np.concatenate(list(looked))  # half a kilobyte a row: copied only where it must be
        minhash = minhash if len(firsts) == table.size else minhash[firsts]
        near[firsts] = firsts[clusters(minhash, threshold)]
    return Duplicates(exact, near)


def judge(table: Table, duplicates: Duplicates, threshold: float) -> list[Finding]:
    exact = np.flatnonzero(duplicates.exact != np.arange(table.size))
    near = np.flatnonzero(duplicates.near != np.arange(table.size))
    return [
        *table.finding(
            "duplicate.exact",
            exact,
            "the same conversation stands further up in the file; it counts twice and is memorised sooner; remove "
            "them (dft data prepare does)",
        ),
        *table.finding(
            "duplicate.near",
            near,
            f"{threshold:.0%} or more of the words, three at a time, are those of a row further up; keep one of each "
            "(dft data prepare does), or raise data.audit.near_duplicate if they are meant to be so alike",
        ),
    ]


def statistics(table: Table, duplicates: Duplicates) -> dict[str, Any]:
    """How many clusters of rows that are (nearly) equal, and the largest of them."""
    of = duplicates.near[duplicates.exact]  # an exact copy belongs where its original does
    leaders, sizes = np.unique(of, return_counts=True)
    leaders, sizes = leaders[sizes > 1], sizes[sizes > 1]
    largest = np.argsort(-sizes, kind="stable")[:_LARGEST]
    counts = dict(zip(*(a.tolist() for a in np.unique(sizes, return_counts=True)), strict=True))
    return {
        "clusters": len(sizes),
        "rows": int(sizes.sum()),
        "sizes": {str(size): count for size, count in counts.items()},
        "largest": [
            {"rows": int(sizes[i]), "line": shown.row, "text": shown.text}
            for i in largest
            for shown in [table.shown(int(leaders[i]))]
        ],
    }


def first_equal(values: Any) -> Indices:
    """For each entry the index of the first that is equal to it."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return joined([first[which]], np.int64)
