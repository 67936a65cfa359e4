"""Which of a set of labels an answer names, or which is the likeliest: accuracy, macro-F1, confusion matrix."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Choose, Request, Response, Score, Scored, question, reference
from distributed_ft.evaluation.tasks.choices import likeliest
from distributed_ft.evaluation.tasks.rule import FreeText, place

NO_LABEL = "(none)"  # an answer that names none, or several
_MOST = 1000  # labels; more are no classification, and would be asked one by one
_ENDS = " \t\r\n.,;:!?\"'`*()[]{}"


@dataclass(frozen=True)
class Classification(FreeText):
    """1 if the answer names the row's label and no other, else 0.

    `labels`: all there are; those of the rows where none are given. An answer names a label by being it (case and
    punctuation around it aside), or else by holding it, and no other, as words. `likelihood`: the model is not asked to
    write; its label is the one that is likeliest as the answer.
    """

    given: tuple[str, ...] | None = None
    likelihood: bool = False
    metric: str = "classification"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens, "rule": [self.given, self.likelihood]}

    def for_rows(self, rows: Sequence[Example]) -> "Classification":
        """With the labels of the rows, where none were given."""
        found = tuple(sorted({reference(row).strip() for row in rows}))
        return self if self.given is not None else Classification(self.max_new_tokens, found, self.likelihood)

    @property
    def labels(self) -> tuple[str, ...]:
        assert self.given is not None, "for_rows comes first"
        return self.given

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a row whose answer is no label, and for labels that cannot be told apart."""
        folded = Counter(_bare(label) for label in self.labels)
        for label in self.labels:
            if folded[_bare(label)] > 1 or not _bare(label):
                raise DataError(
                    f"{place(rows[0])}: the label {label!r} cannot be told from another by its letters; rename it"
                )
        for row in rows:
            if reference(row).strip() not in self.labels:
                raise DataError(
                    f"{place(row)}: the answer {shorten(reference(row))} is none of the labels "
                    f"{', '.join(self.labels[:20])}; correct the row, or add it to `labels`"
                )
        if not 2 <= len(self.labels) <= _MOST:
            raise DataError(
                f"{place(rows[0])}: {len(self.labels)} labels in the file; a classification has 2 to {_MOST:,}: "
                "give `labels`, or use metric: exact_match"
            )

    def chance(self, rows: Sequence[Example]) -> float:
        """1 / labels."""
        return 1 / len(self.labels)

    def request(self, example: Example) -> Request:
        if self.likelihood:
            return Choose(example.id, question(example), self.labels, example.tools)
        return super().request(example)

    def score(self, example: Example, response: Response) -> Score:
        named = self.labels[likeliest(response.nats)] if self.likelihood else self.named(response.text)
        return Score(float(named == reference(example).strip()), {"names_a_label": float(named != NO_LABEL)}, named)

    def named(self, answer: str) -> str:
        """The label that an answer names, or NO_LABEL."""
        bare = _bare(answer)
        whole = [label for label in self.labels if _bare(label) == bare]
        if whole:
            return whole[0]
        held = {match[0] for match in self._pattern.finditer(answer.casefold())}
        found = [label for label in self.labels if _bare(label) in held]
        return found[0] if len(found) == 1 else NO_LABEL

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted((_bare(label) for label in self.labels), key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """`macro_f1`, `majority` (accuracy of naming the commonest label), `f1[label]`, and how often which label was
        taken for which: `confusion[right -> named]`, those that occur."""
        pairs = Counter((reference(example).strip(), score.answer or NO_LABEL) for example, _, score in scored)
        by_label = f1_by_label(pairs)
        rights = Counter(reference(example).strip() for example, _, _ in scored)
        return {
            "macro_f1": sum(by_label.values()) / len(by_label),
            "majority": max(rights.values()) / len(scored),
            **{f"f1[{label}]": value for label, value in sorted(by_label.items())},
            **{f"confusion[{right} -> {named}]": float(n) for (right, named), n in sorted(pairs.items())},
        }


def f1_by_label(pairs: Mapping[tuple[str, str], int]) -> dict[str, float]:
    """F1 of every label that is right somewhere or named somewhere: 2 tp / (2 tp + fp + fn); of answers without a
    label none. Their plain mean is macro-F1, as scikit-learn has it for these labels."""
    labels = {label for pair in pairs for label in pair} - {NO_LABEL}
    found = {}
    for label in labels:
        hits = pairs.get((label, label), 0)
        named = sum(n for (_, other), n in pairs.items() if other == label)
        right = sum(n for (other, _), n in pairs.items() if other == label)
        found[label] = 2 * hits / (named + right)
    return found


def _bare(text: str) -> str:
    return text.strip(_ENDS).casefold()
