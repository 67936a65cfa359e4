"""Near-duplicates among many texts: MinHash signatures, and the clusters of rows whose signatures agree.

Two texts are as similar as the sets of their word triples: Jaccard, |A ∩ B| / |A ∪ B|. The share of equal entries in
two MinHash signatures estimates it (Broder 1997) with a standard error of sqrt(J (1 - J) / 128), 0.035 at J = 0.8.
Candidates come from banding (Leskovec et al., Mining of Massive Datasets, 3.4), so nothing compares all with all.
Memory: 512 bytes a row for the signatures and about 50 for the clusters. Torch-free, no state, no chance.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

Signatures = npt.NDArray[np.uint32]
Labels = npt.NDArray[np.int64]

NUM_HASHES = 128
_SEED = 1  # of the hash functions; a constant: signatures of two runs are comparable
_SHINGLE = 3  # words
# Rows given to rensa at once. From 256 on it starts threads, which do not survive a fork: a forked process would wait
# for them for ever.
_BATCH = 128
_PAIRS = 65536  # pairs whose signatures are compared at once: 64 MiB
_RECALL = 0.99  # of banding, for pairs at the threshold itself; those above it are found more surely
_ROUNDS = 16  # leaders that a row of a bucket is compared with, before it is left to the other bands
_SAMPLE = 2000  # texts looked at for what they share

# Han, kana and Thai are written without spaces: there a character is a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """What is compared of a text: its words without case, punctuation and white space."""
    return _WORD.findall(text.casefold())


def shingles(text: str) -> list[str]:
    """Every three words in a row; the whole text where there are fewer."""
    found = words(text)
    if len(found) < _SHINGLE:
        return [" ".join(found) or text]
    return list(map(" ".join, zip(found, found[1:], found[2:], strict=False)))


def shared(texts: Sequence[str], share: float = 0.2) -> frozenset[str]:
    """The shingles in more than `share` of the texts (of 2,000 of them, evenly drawn): a template, not the content."""
    sample = texts[:: -(-len(texts) // _SAMPLE) or 1]
    counts = Counter(shingle for text in sample for shingle in set(shingles(text)))
    least = max(share * len(sample), 10)  # in a handful of texts nothing is a template yet
    return frozenset(shingle for shingle, count in counts.items() if count > least)


def signatures(texts: Sequence[str], without: frozenset[str] = frozenset()) -> Signatures:
    """MinHash of each text's shingles, uint32 [n, 128]; `without` those given, unless a text has no others."""
    rows = np.empty((len(texts), NUM_HASHES), np.uint32)
    for first in range(0, len(texts), _BATCH):
        sets: list[list[str]] = [shingles(text) for text in texts[first : first + _BATCH]]
        if without:
            sets = [[s for s in given if s not in without] or given for given in sets]
        digests = RMinHash.digest_matrix_from_token_sets(sets, NUM_HASHES, _SEED)
        rows[first : first + len(sets)] = digests.to_rows()
    return rows


def clusters(signatures: Signatures, threshold: float) -> Labels:
    """For each row the lowest row of its cluster, int64 [n]: rows linked by pairs that agree in `threshold` or more.

    A chain is one cluster: A and C may be less alike than the threshold when B is like both. Within a bucket of a band
    rows are compared with its first one, those unlike it with the first of them, and so on, 16 times at most: a bucket
    of thousands stays linear, and a pair that is passed over in one band meets again in others.
    """
    parent = np.arange(len(signatures), dtype=np.int64)
    for bucketed in _bands(signatures, threshold):
        _link(parent, signatures, bucketed, threshold)
    return parent


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the longest bands in which pairs at the threshold still meet with `_RECALL`."""
    for rows in range(NUM_HASHES, 1, -1):
        bands = NUM_HASHES // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return NUM_HASHES, 1


def _bands(signatures: Signatures, threshold: float) -> Iterator[tuple[Labels, npt.NDArray[np.bool_]]]:
    """Of each band the rows that share a bucket, bucket by bucket, rows ascending; and where a bucket begins."""
    num_bands, width = bands_for(threshold)
    for band in range(num_bands):
        keys = np.zeros(len(signatures), np.uint64)
        for column in range(band * width, (band + 1) * width):
            keys = (keys ^ signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)  # wraps round: a hash
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable").astype(np.int64)
        keys = keys[order]
        begins = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.bool_)
        alone = begins & np.concatenate([begins[1:], [True]])[: len(begins)]
        yield order[~alone], begins[~alone]


def _link(
    parent: Labels, signatures: Signatures, bucketed: tuple[Labels, npt.NDArray[np.bool_]], threshold: float
) -> None:
    rows, begins = bucketed
    for _ in range(_ROUNDS):
        if not len(rows):
            return
        first = np.flatnonzero(begins)
        leaders = np.repeat(rows[first], np.diff([*first, len(rows)]))
        apart = parent[rows] != parent[leaders]  # what is linked already costs nothing
        alike = np.zeros(len(rows), np.bool_)
        alike[apart] = _agreement(signatures, rows[apart], leaders[apart]) >= threshold
        _unite(parent, rows[alike], leaders[alike])
        left = apart & ~alike
        buckets = np.cumsum(begins)[left]
        rows = rows[left]
        begins = np.concatenate([[True], buckets[1:] != buckets[:-1]]) if len(rows) else begins[:0]


def _agreement(signatures: Signatures, left: Labels, right: Labels) -> npt.NDArray[np.float64]:
    """The share of equal entries of each pair of rows."""
    agreement = np.empty(len(left))
    for first in range(0, len(left), _PAIRS):
        pairs = slice(first, first + _PAIRS)
        agreement[pairs] = (signatures[left[pairs]] == signatures[right[pairs]]).mean(1)
    return agreement


def unite(size: int, pairs: Sequence[tuple[Labels, Labels]]) -> Labels:
    """For each of `size` rows the lowest of its connected component, int64 [size], linked by pairs (left, right)."""
    parent = np.arange(size, dtype=np.int64)
    for left, right in pairs:
        _unite(parent, left, right)
    return parent


def _unite(parent: Labels, left: Labels, right: Labels) -> None:
    """Merge components in place; `parent` leads from every row straight to the lowest of its component."""
    while len(left):
        left, right = parent[left], parent[right]
        low, high = np.minimum(left, right), np.maximum(left, right)
        apart = low != high
        left, right = low[apart], high[apart]
        np.minimum.at(parent, right, left)
        while not np.array_equal(parent, above := parent[parent]):
            parent[:] = above
