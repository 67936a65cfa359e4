"""What the answers of a checkpoint look like beside their references and the answers it was trained on. Pure, but for
`training_answers`, which reads the training file that the settings name.

A format is told by words, numbers and marks: text is cut into runs of letters, runs of digits, runs of white space and
single other characters, and two answers part where the first of these differs.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from pydantic import ValidationError

from distributed_ft.config.schema import DataConfig
from distributed_ft.data.examples import TEXT
from distributed_ft.data.reading import Reading, read
from distributed_ft.errors import FtError
from distributed_ft.evaluation.few_shot import source_of_examples
from distributed_ft.evaluation.report.evidence import Deviation, TaskAnswers
from distributed_ft.records import Sample

MOST_ROWS = 20_000  # of the training file are looked at
RIGHT = 1.0  # an item is right at full score, as in `report.scores`
END = ""  # the piece after the last one
FORMAT_SHARE, NEW_SHARE = 0.9, 0.1
"""A piece in so many of the references is part of the format; one in so few of them is new to it."""
_PIECE = re.compile(r"[^\W\d_]+|\d+|\s+|.", re.DOTALL)


@dataclass(frozen=True)
class TrainingAnswers:
    """The answers of the file that teaches the task, as far as they were looked at."""

    texts: frozenset[str]  # distinct, white space at both ends aside
    rows: int
    plain_text: int  # rows without turns: all of such a row is learned, in no chat template


def training_answers(config: dict[str, Any]) -> TrainingAnswers | None:
    """Of the training file that the settings name, or None when it is not there any more, or on the hub."""
    try:
        reading = Reading.of(source_of_examples(DataConfig.model_validate_json(json.dumps(config.get("data")))))
        if reading.on_hub:
            return None
        rows = list(islice(read(reading, MOST_ROWS, []), MOST_ROWS))
    except (FtError, ValidationError, OSError):
        return None
    plain = sum(row.messages[0].role == TEXT for row in rows)
    answers = {m.content.strip() for row in rows for m in row.messages if m.role == "assistant"}
    return TrainingAnswers(frozenset(answers), len(rows), plain)


def task_answers(
    task: str, step: int, samples: Sequence[Sample], base: Sequence[Sample], training: TrainingAnswers | None
) -> TaskAnswers:
    """What there is to see in the answers of one checkpoint (`samples`) to one task; `base`: the base model's."""
    longest = max((len(sample.reference) for sample in samples), default=0)
    before = {sample.doc_hash: sample.response.strip() for sample in base}
    wrong = [sample for sample in samples if sample.score < RIGHT]
    seen: Collection[str] = training.texts if training else ()
    return TaskAnswers(
        task=task,
        step=step,
        n=len(samples),
        wrong=len(wrong),
        empty=sum(not sample.response.strip() for sample in samples),
        ran_on=sum(runs_on(sample, longest) for sample in wrong),
        base_ran_on=sum(runs_on(sample, longest) for sample in base if sample.score < RIGHT),
        as_base=sum(before.get(sample.doc_hash) == sample.response.strip() for sample in samples),
        from_training=sum(_verbatim(sample.response, seen) for sample in wrong),
        references_in_training=sum(_verbatim(sample.reference, seen) for sample in samples),
        training_known=training is not None,
        deviation=_deviation(samples, base, seen),
    )


def runs_on(sample: Sample, longest_reference: int) -> bool:
    """Whether the answer goes on behind the right one, or is far longer than any reference of the task."""
    response, reference = sample.response.strip(), sample.reference.strip()
    rest = response[len(reference) :] if reference and response.startswith(reference) else ""
    if rest and (not (rest[0].isalnum() and reference[-1].isalnum()) or len(rest) > len(reference)):
        return True
    return len(response) > 1.5 * longest_reference + 16


def _verbatim(answer: str, seen: Collection[str]) -> bool:
    return bool(answer.strip()) and answer.strip() in seen


# --- where the format of an answer changes ---------------------------------------------------------------------------


def pieces(text: str) -> list[str]:
    """Runs of letters, of digits and of white space, and other characters one by one."""
    return _PIECE.findall(text.strip())


@dataclass(frozen=True)
class _Parting:
    """Where an answer leaves its reference: with which piece instead of which, after so many characters."""

    expected: str
    found: str
    at: int
    share: float  # of the reference


def _parting(sample: Sample) -> _Parting | None:
    """None for an answer that is its reference."""
    expected, found = pieces(sample.reference), pieces(sample.response)
    at = next((i for i, (e, f) in enumerate(zip(expected, found, strict=False)) if e != f), None)
    if at is None:
        if len(expected) == len(found):
            return None
        at = min(len(expected), len(found))
    characters = sum(map(len, expected[:at]))
    total = max(1, sum(map(len, expected)))
    return _Parting((*expected, END)[at], (*found, END)[at], characters, characters / total)


def _deviation(samples: Sequence[Sample], base: Sequence[Sample], seen: Collection[str]) -> Deviation | None:
    """The most frequent way in which wrong answers leave the format of the references; None where there is none.

    It is one of format, not of content, when what was expected there is part of all references, or what was found
    there is in none of them but in many answers.
    """
    partings = [(s, p) for s in samples if s.score < RIGHT and (p := _parting(s)) is not None]
    if not partings:
        return None
    in_references = Counter(piece for s in samples for piece in set(pieces(s.reference)))
    in_answers = Counter(piece for s in samples for piece in set(pieces(s.response)))

    def of_format(parting: _Parting) -> bool:
        required = parting.expected == END or in_references[parting.expected] >= FORMAT_SHARE * len(samples)
        new = in_references[parting.found] <= NEW_SHARE * len(samples) and in_answers[parting.found] >= len(samples) / 2
        return required or (parting.found != END and new)

    ways = Counter((p.expected, p.found) for _, p in partings if of_format(p))
    if not ways:
        return None
    (expected, found), count = ways.most_common(1)[0]
    taken = [(s, p) for s, p in partings if (p.expected, p.found) == (expected, found)]
    shown, parting = taken[0]
    in_base = [p for s in base if s.score < RIGHT and (p := _parting(s)) is not None]
    return Deviation(
        count=count,
        start=median(p.share for _, p in taken),
        character=round(median(p.at for _, p in taken)),
        expected=_excerpt(shown.reference, parting.at),
        found=_excerpt(shown.response, parting.at),
        same_words=sum(_words(s.reference) == _words(s.response) for s, _ in taken),
        in_base=sum((p.expected, p.found) == (expected, found) for p in in_base),
        in_training=_share_with(found, in_references[found] / len(samples), expected, seen),
    )


def _share_with(found: str, in_references: float, expected: str, seen: Collection[str]) -> float | None:
    """Of the training answers, which share is written in the deviating way: with what was found, or, where that is in
    the references as well, without what was expected."""
    texts = list(islice(seen, 2000))
    if not texts:
        return None
    cut = [set(pieces(text)) for text in texts]
    if found != END and in_references <= NEW_SHARE:
        return sum(found in text for text in cut) / len(texts)
    return sum(expected not in text for text in cut) / len(texts) if expected != END else 0.0


def _words(text: str) -> list[str]:
    return [piece.casefold() for piece in pieces(text) if piece.isalnum()]


def _excerpt(text: str, at: int, length: int = 24) -> str:
    """The text from shortly before a character on."""
    start = max(0, at - 8)
    shown = text.strip()[start : start + length]
    return ("…" if start else "") + shown + ("…" if start + length < len(text.strip()) else "")
