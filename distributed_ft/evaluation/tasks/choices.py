"""Which of several choices is the likeliest as the answer: nothing is generated."""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Choose, Request, Response, Score, Scored, question, reference
from distributed_ft.evaluation.tasks.rule import column, place, texts

AnswerForm = Literal["auto", "text", "letter", "index", "number"]
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_KEY = "choices_column"


@dataclass(frozen=True)
class Choices:
    """The choices of an item, what labels them, and the place of the right one."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    right: int


def likeliest(values: Sequence[float]) -> int:
    """The place of the largest; of equals the first, as numpy's argmax has it."""
    return max(range(len(values)), key=values.__getitem__)


def per_byte(nats: Sequence[float], choices: Sequence[str]) -> list[float]:
    """Log-likelihood of each choice by its length in UTF-8 bytes, by which lm-evaluation-harness has acc_norm."""
    return [value / max(1, len(choice.encode())) for value, choice in zip(nats, choices, strict=True)]


@dataclass(frozen=True)
class MultipleChoice:
    """1 if the choice with the largest log-likelihood (by default of a byte) is the right one, else 0.

    `acc` and `acc_norm` are both of every item; `p` is the share of the right choice in the likelihood of all.
    """

    fixed: tuple[str, ...] | None = None
    column: str = "choices"
    answer: AnswerForm = "auto"
    normalize: bool = True
    letters: bool = False
    metric: str = "multiple_choice"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {"rule": [self.fixed, self.column, self.answer, self.normalize, self.letters]}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a row without choices, or whose answer is none of them."""
        for row in rows:
            self._choices(row)

    def chance(self, rows: Sequence[Example]) -> float:
        """Mean of 1 / choices."""
        return sum(1 / len(self._choices(row).texts) for row in rows) / len(rows)

    def request(self, example: Example) -> Request:
        choices = self._choices(example)
        messages = question(example)
        if self.letters:
            lines = [f"{label}. {text}" for label, text in zip(choices.labels, choices.texts, strict=True)]
            last = messages[-1]
            messages = (*messages[:-1], replace(last, content="\n".join([last.content, *lines])))
        return Choose(example.id, messages, self._asked(choices), example.tools)

    def score(self, example: Example, response: Response) -> Score:
        choices = self._choices(example)
        by_byte = per_byte(response.nats, self._asked(choices))
        plain, normal = likeliest(response.nats), likeliest(by_byte)
        taken = normal if self.normalize else plain
        further = {"acc": float(plain == choices.right), "acc_norm": float(normal == choices.right)}
        return Score(float(taken == choices.right), further, choices.texts[taken])

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        return {}

    def _asked(self, choices: Choices) -> tuple[str, ...]:
        return choices.labels if self.letters else choices.texts

    def _choices(self, row: Example) -> Choices:
        labels: tuple[str, ...] = ()
        found = self.fixed
        if found is None:
            text = column(row, self.column, self.metric, _KEY)
            labels, inner = _labelled(text)
            found = texts(inner_row(row, self.column, inner), self.column, self.metric, _KEY)
        if len(found) < 2 or len(set(found)) < len(found):
            raise DataError(f"{place(row)}: the choices {shorten(list(found))} are not two or more different texts")
        if len(labels) != len(found):
            labels = tuple(string.ascii_uppercase[i] if i < 26 else str(i + 1) for i in range(len(found)))
        return Choices(found, labels, self._right(row, found, labels))

    def _right(self, row: Example, found: Sequence[str], labels: Sequence[str]) -> int:
        places = _places(reference(row).strip(), found, labels)
        chosen = {places[form] for form in _FORMS[self.answer] if form in places}
        if len(chosen) == 1:
            return chosen.pop()
        where = f"{place(row)}: the answer {shorten(reference(row))}"
        if chosen:
            raise DataError(f"{where} could mean several of the choices {shorten(list(found))}; say by `answer` which")
        counted = "" if self.answer != "auto" or reference(row).strip() != str(len(found)) else "; counted from 1?"
        raise DataError(
            f"{where} is none of the choices {shorten(list(found))}"
            + (f" by its {self.answer}" if self.answer != "auto" else "")
            + (f"{counted} Then write answer: number" if counted else "; correct the row, or the key `answer`")
        )


_FORMS: dict[AnswerForm, tuple[str, ...]] = {
    "auto": ("text", "letter", "index"),
    "text": ("text",),
    "letter": ("letter",),
    "index": ("index",),
    "number": ("number",),
}


def _places(answer: str, found: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """The choice that an answer would be, by what it is taken for."""
    places = {}
    stripped = [choice.strip() for choice in found]
    if answer in stripped:
        places["text"] = stripped.index(answer)
    letter = _LETTER.fullmatch(answer)
    named = letter[1].upper() if letter else answer
    if named in labels:
        places["letter"] = labels.index(named)
    if answer.isdecimal() and int(answer) < len(found):
        places["index"] = int(answer)
    if answer.isdecimal() and 1 <= int(answer) <= len(found):
        places["number"] = int(answer) - 1
    return places


def _labelled(text: str) -> tuple[tuple[str, ...], str]:
    """Labels and list of {"text": […], "label": […]}, as ARC has its choices; of a plain list, no labels."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return (), text
    if not isinstance(value, dict) or not isinstance(value.get("text"), list):
        return (), text
    labels = value.get("label")
    named = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return named, json.dumps(value["text"], ensure_ascii=False)


def inner_row(row: Example, name: str, text: str) -> Example:
    """The row with another text in one column."""
    return replace(row, columns={**row.columns, name: text})
