"""How rows spread over labels, categories and lengths, and how varied the answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_ft.data.audit.forms import NUMBER, SHORT
from distributed_ft.data.audit.rows import LEAST, Codes, Indices, Rows, Table, joined
from distributed_ft.data.audit.words import Hashes
from distributed_ft.data.findings import Finding

ANSWER = "answer"  # the name of the label where the whole answer is one
_LABEL = 40  # characters of a label at most
_VALUES, _FIELDS = 64, 16  # different values of a label in a chunk, and fields of JSON that may be labels
_RARE, _DOMINANT, _RATIO = 0.01, 0.95, 50  # share of a class, share of another, largest class / smallest
_LEAST = 200  # rows: of fewer a class of 1% is chance
_SKETCH = 1024  # smallest hashes kept of n-grams: their number is known to 3%


@dataclass(frozen=True, slots=True)
class Balance:
    """Of a chunk: labels by field, and a sketch of the answers' words."""

    values: dict[str, list[str]]  # by field (`answer`: the answer itself) what it may be; fields with few values only
    codes: dict[str, Codes]  # by field its value in each row; -1: none
    open_fields: tuple[str, ...]  # with too many values to be labels
    totals: tuple[int, int, int]  # words, pairs and triples of words in the answers
    sketches: tuple[Hashes, Hashes, Hashes]  # the smallest hashes of each


def look(rows: Rows) -> Balance:
    size = len(rows.examples)
    found: dict[str, dict[str, int]] = {}
    codes: dict[str, Codes] = {}
    for i, (form, answer) in enumerate(zip(rows.forms, rows.answers, strict=True)):
        if form.name in (SHORT, NUMBER):
            labels: Mapping[str, Any] = {ANSWER: answer.strip()}
        elif isinstance(form.value, dict):
            labels = form.value
        else:
            continue
        for field, value in labels.items():
            if isinstance(value, str):
                text = value
            elif value is None or isinstance(value, bool):
                text = str(value).lower()
            else:
                continue
            if len(text) > _LABEL:
                continue
            if field not in codes:
                if len(codes) >= _FIELDS:
                    continue
                codes[field], found[field] = np.full(size, -1, np.int32), {}
            values = found[field]
            if len(values) <= _VALUES:
                codes[field][i] = values.setdefault(text, len(values))
    many = tuple(field for field, values in found.items() if len(values) > _VALUES)
    answers = rows.words.every_second(1)
    sketches = [_sketch(answers.ngrams(n)[0]) for n in (1, 2, 3)]
    return Balance(
        {field: list(values) for field, values in found.items() if field not in many},
        {field: c for field, c in codes.items() if field not in many},
        many,
        (sketches[0][0], sketches[1][0], sketches[2][0]),
        (sketches[0][1], sketches[1][1], sketches[2][1]),
    )


def _sketch(hashes: Hashes) -> tuple[int, Hashes]:
    """How many there are, and the smallest different ones (Bar-Yossef et al. 2002)."""
    if len(hashes) > 8 * _SKETCH:
        low = np.unique(hashes[hashes < np.uint64(2**64 * 4 * _SKETCH // len(hashes))])
        if len(low) >= _SKETCH:
            return len(hashes), low[:_SKETCH]
    return len(hashes), np.unique(hashes)[:_SKETCH]


@dataclass(frozen=True)
class Labels:
    """By field: its values, and the value of each row of the file (-1: none)."""

    fields: dict[str, tuple[list[str], Codes]]


def labels_of(table: Table, looked: Sequence[Balance]) -> Labels:
    """The fields that are labels in the whole file: few values, each often."""
    fields: dict[str, tuple[list[str], Codes]] = {}
    closed = {f for facts in looked for f in facts.values} - {f for facts in looked for f in facts.open_fields}
    for field in sorted(closed):
        index: dict[str, int] = {}
        parts = []
        for basics, facts in zip(table.chunks, looked, strict=True):
            if field not in facts.codes:
                parts.append(np.full(len(basics.lines), -1, np.int32))
                continue
            renumbered = [index.setdefault(v, len(index)) for v in facts.values[field]]
            parts.append(np.array([*renumbered, -1], np.int32)[facts.codes[field]])
        codes = joined(parts, np.int32)
        counts = np.bincount(codes[codes >= 0], minlength=len(index))
        often = counts >= max(0.002 * table.size, 3)
        if 2 <= len(index) <= _VALUES and counts[often].sum() >= 0.95 * counts.sum() and counts.sum() >= 5 * len(index):
            fields[field] = (list(index), codes)
    return Labels(fields)


def judge(table: Table, labels: Labels) -> list[Finding]:
    findings: list[Finding] = []
    for field, (values, codes) in labels.fields.items():
        rows = np.flatnonzero(codes >= 0)
        if len(rows) < max(_LEAST, 0.5 * table.size):
            continue  # the labels of one task among many
        name = "answers" if field == ANSWER else f"values of {field!r}"
        findings += _unequal(table, name, values, codes, rows)
    categories = table.categories
    if categories.total() >= max(_LEAST, 0.5 * table.size):
        names = list(categories)
        code = {name: i for i, name in enumerate(names)}
        of = joined([c.parts for c in table.chunks], np.uint32)
        by_part = {part: code[n] for c in table.chunks for part, n in c.names.items()}
        codes = np.array([by_part.get(int(part), -1) for part in of], np.int32)
        findings += _unequal(table, "categories", names, codes, np.flatnonzero(codes >= 0))
    return (findings or _constant(table)) + _lengths(table)


def _constant(table: Table) -> list[Finding]:
    """One answer to nearly all questions."""
    values, counts = np.unique(table.answers[table.answers != 0], return_counts=True)
    if table.size < LEAST or not len(counts) or counts.max() <= _DOMINANT * table.size:
        return []
    return table.finding(
        "imbalance",
        np.flatnonzero(table.answers == values[counts.argmax()]),
        "they have one and the same answer; the model learns to give it whatever it is asked; add rows with other "
        "answers, or look whether the right column is read",
    )


def _unequal(table: Table, name: str, values: list[str], codes: Codes, rows: Indices) -> list[Finding]:
    counts = np.bincount(codes[rows], minlength=len(values))
    total, largest = int(counts.sum()), int(counts.argmax())
    rare = np.flatnonzero((counts > 0) & ((counts < _RARE * total) | (counts * _RATIO < counts.max())))
    if counts[largest] > _DOMINANT * total:
        rare = np.flatnonzero(np.arange(len(counts)) != largest)
    if not len(rare):
        return []
    told = ", ".join(f"{values[i]!r} {counts[i]:,}" for i in rare[np.argsort(counts[rare])][:5])
    return table.finding(
        "imbalance",
        rows[np.isin(codes[rows], rare)],
        f"rare {name}: {told}, where {values[largest]!r} has {counts[largest]:,} of {total:,}; the model will hardly "
        "ever give them, and a score will not show it; add such rows, or remove the class",
    )


def _lengths(table: Table) -> list[Finding]:
    """Answers more than ten times as long as the usual one of their kind, and four deviations off."""
    found = [np.zeros(0, np.int64)]
    for _, rows in table.parts:
        lengths = np.maximum(table.answer_lengths[rows], 1)
        if len(rows) < 100:
            continue
        logs = np.log(lengths)
        median = float(np.median(logs))
        deviation = max(1.4826 * float(np.median(np.abs(logs - median))), 0.25)
        high = (logs > median + max(np.log(10), 4 * deviation)) & (lengths > 400)
        if high.mean() <= 0.15:
            found.append(rows[high])
    return table.finding(
        "imbalance.length",
        np.concatenate(found),
        "the answer is more than ten times as long as the usual one; such rows weigh as much as ten others in the "
        "loss; check that they are whole and wanted, and shorten or remove them",
    )


def diversity(table: Table, looked: Sequence[Balance]) -> dict[str, Any]:
    """Different n-grams / all n-grams of the answers (Li et al. 2016, arXiv:1510.03055); the most frequent answer."""
    told: dict[str, Any] = {}
    for n in range(3):
        total = sum(facts.totals[n] for facts in looked)
        smallest: npt.NDArray[np.uint64] = np.unique(joined([facts.sketches[n] for facts in looked], np.uint64))
        different = float(len(smallest))
        if len(smallest) > _SKETCH:
            different = (_SKETCH - 1) / (float(smallest[_SKETCH - 1]) / 2.0**64)
        told[f"distinct_{n + 1}"] = round(min(different / total, 1.0), 4) if total else None
    _, counts = np.unique(table.answers, return_counts=True)
    told["most_frequent_answer"] = round(float(counts.max() / table.size), 4) if table.size else None
    return told
