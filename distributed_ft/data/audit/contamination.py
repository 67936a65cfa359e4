"""Training rows that contain what the model will be judged by.

An item of a reference (validation, test, an evaluation task, a general suite) counts as seen when a training row has

* the same normalised prompt, or prompt and answer (no case, punctuation, white space), or
* more than half of the item's word 8-grams, in that one row.

Word n-grams are how the field tells: GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C: 8 to 13 words), PaLM
(Chowdhery et al. 2022, arXiv:2204.02311, section 8: 70% of an item's 8-grams), Llama 2 (Touvron et al. 2023,
arXiv:2307.09288, A.6: by token). n-grams that many items of a reference share are its instruction, not its content, and
do not count; an item of fewer words than n is told by its hash only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from distributed_ft.data.audit.masking import masked
from distributed_ft.data.audit.rows import Indices, Rows, Table, cut, joined
from distributed_ft.data.audit.words import Hashes
from distributed_ft.data.findings import Finding, Severity, Shown

K = TypeVar("K", bound="np.integer[Any]")
_SHARED_ITEMS, _SHARED = 2, 0.01  # an n-gram, or a prompt, in more items than this is a reference's instruction


@dataclass(frozen=True, slots=True)
class Known:
    """The items of all references, to be found again; items are numbered through."""

    names: tuple[str, ...]  # of the references
    severities: tuple[Severity, ...]
    paths: tuple[str, ...]
    reference: Indices  # [items] which reference an item is of
    places: list[str]  # [items] file and line
    texts: list[str]  # [items] as they may be shown
    whole: tuple[Hashes, Indices]  # ascending hashes of prompt, and of prompt and answer; the item of each
    grams: Hashes  # ascending, each once
    starts: Indices  # [grams + 1] into `holders`
    holders: Indices  # the items that have the n-gram
    counts: Indices  # [items] how many n-grams an item is told by
    maybe: npt.NDArray[np.bool_]  # [2^bits] hashes that begin so are worth a look: most n-grams are in no reference
    bits: int
    ngram: int


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of a training row (index in its chunk) and an item that it contains."""

    rows: Indices
    items: Indices
    shares: npt.NDArray[np.float32]  # of the item's n-grams; 1: the same prompt, or the same row


@dataclass(frozen=True)
class ReferenceRows:
    """What the model will be judged by."""

    name: str
    path: str
    severity: Severity
    rows: Rows


def known(references: Sequence[ReferenceRows], ngram: int) -> Known:
    """An index of all items of all references."""
    hashes, items, grams, holders, offset = [], [], [], [], 0
    for reference in references:
        size = len(reference.rows.examples)
        least = max(_SHARED_ITEMS, _SHARED * size)
        words = reference.rows.words
        both = words.pairs()
        index = np.arange(size) + offset
        for values in (both.sequences(), reference.rows.sequences[::2]):
            _, which, count = np.unique(values, return_inverse=True, return_counts=True)
            kept = (values != 0) & (count[which] <= least)
            hashes.append(values[kept])
            items.append(index[kept])
        values, holder = both.ngrams(ngram)
        values, holder, _ = _distinct(values, holder)
        _, which, count = np.unique(values, return_inverse=True, return_counts=True)
        grams.append(values[count[which] <= least])
        holders.append(holder[count[which] <= least] + offset)
        offset += size
    all_hashes, all_items = joined(hashes, np.uint64), joined(items, np.int64)
    all_grams, all_holders = joined(grams, np.uint64), joined(holders, np.int64)
    by_hash, by_gram = np.argsort(all_hashes, kind="stable"), np.argsort(all_grams, kind="stable")
    distinct, starts = np.unique(all_grams[by_gram], return_index=True)
    bits = min(max((8 * len(distinct)).bit_length(), 10), 24)  # one in eight is looked up in vain
    maybe = np.zeros(2**bits, np.bool_)
    maybe[distinct >> np.uint64(64 - bits)] = True
    return Known(
        names=tuple(r.name for r in references),
        severities=tuple(r.severity for r in references),
        paths=tuple(r.path for r in references),
        reference=np.repeat(np.arange(len(references)), [len(r.rows.examples) for r in references]),
        places=[f"{e.path}:{e.line}" for r in references for e in r.rows.examples],
        texts=[cut(p, a) for r in references for p, a in zip(r.rows.prompts, r.rows.answers, strict=True)],
        whole=(all_hashes[by_hash], all_items[by_hash]),
        grams=distinct,
        starts=np.append(starts, len(all_grams)),
        holders=all_holders[by_gram],
        counts=np.bincount(all_holders, minlength=offset),
        maybe=maybe,
        bits=bits,
        ngram=ngram,
    )


def look(rows: Rows, items: Known, overlap: float) -> Matches:
    """What the rows of a chunk contain of the references; no loop over words or rows."""
    if not items.places:
        none = np.zeros(0, np.int64)
        return Matches(none, none, np.zeros(0, np.float32))
    both = rows.words.pairs()
    found_rows, found_items, found_shares = [], [], []
    hashes, owners = items.whole
    for values in (both.sequences(), rows.sequences[::2]):
        row, at = _expand(*(np.searchsorted(hashes, values, side=s) for s in ("left", "right")))
        there = values[row] != 0
        found_rows.append(row[there])
        found_items.append(owners[at[there]])
        found_shares.append(np.ones(int(there.sum()), np.float32))
    grams, row = both.ngrams(items.ngram)
    likely = items.maybe[grams >> np.uint64(64 - items.bits)]
    grams, row = grams[likely], row[likely]
    at = np.searchsorted(items.grams, grams)
    real = at < len(items.grams)
    real[real] = items.grams[at[real]] == grams[real]
    gram, row, _ = _distinct(at[real], row[real])  # an n-gram counts once a row
    which, inside = _expand(items.starts[gram], items.starts[gram + 1])
    row, item, count = _distinct(row[which], items.holders[inside])
    share = count / items.counts[item]
    seen = share > overlap
    return Matches(
        joined([*found_rows, row[seen]], np.int64),
        joined([*found_items, item[seen]], np.int64),
        joined([*found_shares, share[seen].astype(np.float32)], np.float32),
    )


def judge(table: Table, looked: Sequence[Matches], items: Known) -> tuple[list[Finding], dict[str, dict[str, int]]]:
    """The findings, one a reference; and of each reference how many items, how many seen, by how many rows."""
    sizes = [len(c.lines) for c in table.chunks]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = joined([m.rows + o for m, o in zip(looked, offsets, strict=False)], np.int64)
    owned = joined([m.items for m in looked], np.int64)
    shares = joined([m.shares for m in looked], np.float32)
    findings: list[Finding] = []
    seen: dict[str, dict[str, int]] = {}
    for number, name in enumerate(items.names):
        mine = np.flatnonzero(items.reference[owned] == number)
        total, distinct = int((items.reference == number).sum()), np.unique(owned[mine])
        seen[name] = {"items": total, "seen": len(distinct), "rows": len(np.unique(rows[mine]))}
        if not len(mine):
            continue
        _, first = np.unique(rows[mine], return_index=True)
        first = mine[first]
        shown = {int(rows[i]): _pair(table, items, int(rows[i]), int(owned[i]), float(shares[i])) for i in first[:3]}
        findings += table.finding(
            f"contamination.{name}",
            rows[mine],
            f"they contain {len(distinct):,} of the {total:,} items of {name} ({items.paths[number]}): the same "
            f"prompt, or most of its {items.ngram}-word sequences; a score on it is not one on unseen items; remove "
            "these rows from training",
            items.severities[number],
            shown,
        )
    return findings, seen


def _pair(table: Table, items: Known, row: int, item: int, share: float) -> Shown:
    mine = table.shown(row)
    how = "has all of" if share == 1 else f"has {share:.0%} of"
    theirs = f"{items.places[item]}: {masked(items.texts[item])}"
    return Shown(mine.row, f"{mine.text}\n  {how} {theirs}")


def _distinct(left: npt.NDArray[K], right: Indices) -> tuple[npt.NDArray[K], Indices, Indices]:
    """The different pairs (left[i], right[i]), ascending, and how often each is there."""
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    begins = np.ones(len(left), np.bool_)
    begins[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    first = np.flatnonzero(begins)
    return left[first], right[first], np.diff(np.append(first, len(left)))


def _expand(begins: Indices, ends: Indices) -> tuple[Indices, Indices]:
    """Every (i, j) with begins[i] <= j < ends[i]."""
    lengths = ends - begins
    which = np.repeat(np.arange(len(lengths)), lengths)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begins, lengths)
