"""The words of many texts as numbers, all at once: what the checks that compare texts need, without a loop over words.

A text is compared without case, punctuation and white space (and in Unicode's compatibility form NFKC). Hashes are
polynomials modulo 2^64, taken as differences of running sums (Karp & Rabin 1987); equal words have equal hashes in
every process. Two unequal ones agree by chance about once in 2^64.
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]

_LETTER = np.uint64(0x9E3779B97F4A7C15)  # bases of the polynomials: odd, so that they have an inverse
_WORD = np.uint64(0xC2B2AE3D27D4EB4F)
_BATCH = 2**16  # characters at once, about: their numbers stay in the processor's cache
_NONE, _PART, _WHOLE = range(3)  # what a character is to words
_ASCII = np.array([_PART if chr(c).isalnum() else _NONE for c in range(128)], np.uint8)
# Scripts that are written without spaces, where a character is a word: Thai, kana, Chinese characters.
_UNSPACED = ((0xE00, 0xE80), (0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00))


@dataclass(frozen=True, slots=True)
class Words:
    """The words of n texts: text i has `hashes[starts[i] : starts[i + 1]]`."""

    hashes: Hashes  # one a word
    starts: Index  # [n + 1]

    def sequences(self) -> Hashes:
        """One hash a text, uint64 [n]: of its words in their order; 0 where there are none."""
        return _of_runs(self.hashes, self.starts[:-1], self.starts[1:], _WORD) * (np.diff(self.starts) > 0)

    def ngrams(self, n: int) -> tuple[Hashes, Index]:
        """Every n words in a row within a text: their hashes, and which text each is of."""
        count = len(self.hashes) - n + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        rolled = np.zeros(count, np.uint64)
        for offset in range(n):
            rolled = rolled * _WORD + self.hashes[offset : offset + count]
        text = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        inside = text[:count] == text[n - 1 :]
        return mixed(rolled[inside]), text[:count][inside]

    def pairs(self) -> "Words":
        """Texts 0 and 1 as one, 2 and 3 as one, and so on."""
        return Words(self.hashes, self.starts[::2])

    def every_second(self, first: int) -> "Words":
        """Texts `first`, `first` + 2, …"""
        lengths = np.diff(self.starts)
        kept = np.arange(len(lengths)) % 2 == first
        hashes = self.hashes[np.repeat(kept, lengths)]
        return Words(hashes, np.concatenate([[0], np.cumsum(lengths[kept])]))


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64))
    _, firsts = np.unique(ends // _BATCH, return_index=True)
    parts = [_words_of(texts[first:end]) for first, end in pairwise([*firsts.tolist(), len(texts)])]
    lengths = [np.diff(part.starts) for part in parts]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)])
    return Words(hashes, np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])))


def _words_of(texts: Sequence[str]) -> Words:
    joined = "\0".join(texts) + "\0"
    if joined.isascii():
        data: npt.NDArray[np.unsignedinteger[Any]] = np.frombuffer(joined.lower().encode(), np.uint8)
        kinds = _ASCII[data]
    else:
        joined = "\0".join([text.lower() if text.isascii() else _plain(text) for text in texts]) + "\0"
        data = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[data]
    edges = np.flatnonzero((kinds[1:] != kinds[:-1]) | (kinds[1:] == _WHOLE)) + 1
    begins = np.concatenate([[0], edges])
    is_word = kinds[begins] != _NONE
    begins, ends = begins[is_word], np.append(edges, len(data))[is_word]
    starts = np.concatenate([[0], np.searchsorted(begins, np.flatnonzero(data == 0))])
    return Words(_of_runs(data, begins, ends, _LETTER), starts)


def mixed(hashes: Hashes) -> Hashes:
    """The bits of each hash stirred (the finaliser of SplitMix64, Steele et al. 2014): its order looks like chance."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character is, by its code."""
    every = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(len(every), _NONE, np.uint8)
    for run in re.finditer(r"[^\W_]+", every):
        kinds[run.start() : run.end()] = _PART
    for first, end in _UNSPACED:
        kinds[first:end][kinds[first:end] == _PART] = _WHOLE
    return kinds


def _of_runs(values: npt.NDArray[np.unsignedinteger[Any]], begins: Index, ends: Index, base: np.uint64) -> Hashes:
    """A hash of `values[begins[i] : ends[i]]` for each i."""
    powers = _powers(int(base), len(values))
    back = _powers(pow(int(base), -1, 2**64), len(values))
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values + np.uint64(1)) * powers[: len(values)], out=sums[1:])
    return mixed((sums[ends] - sums[begins]) * back[begins])


@lru_cache(maxsize=64)
def _power_table(base: int, size: int) -> Hashes:
    powers = np.full(size, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _powers(base: int, least: int) -> Hashes:
    """base^0, base^1, … modulo 2^64: `least` or more, and one more."""
    return _power_table(base, 1 << max(least + 1, 2**16).bit_length())
