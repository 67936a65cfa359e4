"""Text against text as SQuAD's evaluation script has it: without case, punctuation and articles; F1 of words."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Response, Score, reference
from distributed_ft.evaluation.tasks.rule import FreeText, place, texts

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str, case: bool = True, punctuation: bool = True, articles: bool = True) -> str:
    """Lower case, without ASCII punctuation and English articles, words one space apart; each step can be left out.

    `normalize_answer` of SQuAD 1.1's script (Rajpurkar et al. 2016, arXiv:1606.05250). Articles are looked for in
    either case where the case is kept.
    """
    text = text.lower() if case else text
    text = text.translate(_PUNCTUATION) if punctuation else text
    pattern = _ARTICLES if case else re.compile(_ARTICLES.pattern, re.IGNORECASE)
    return " ".join((pattern.sub(" ", text) if articles else text).split())


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it stands there; normalised.

    Where one of them has no words, 1 if neither has any, else 0, as in SQuAD 2.0's script.
    """
    ours, theirs = normalized(answer).split(), normalized(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


@dataclass(frozen=True)
class _Compared(FreeText):
    """One or several references; the best of them counts."""

    references_column: str | None = None
    metric: str = ""

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens, "references_column": self.references_column}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a reference of which nothing is left to compare with."""
        for row in rows:
            for text in self._references(row):
                if not self._normalized(text):
                    raise DataError(
                        f"{place(row)}: of the answer {shorten(text)} nothing is left without punctuation and "
                        "articles; use metric: exact_match, or correct the row"
                    )

    def _normalized(self, text: str) -> str:
        return normalized(text)

    def _references(self, row: Example) -> tuple[str, ...]:
        name = self.references_column
        return (reference(row), *(texts(row, name, self.metric, "references_column") if name is not None else ()))


@dataclass(frozen=True)
class NormalizedMatch(_Compared):
    """1 if the answer equals a reference when both are normalised, else 0."""

    case: bool = True
    punctuation: bool = True
    articles: bool = True
    metric: str = "normalized_match"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {**super().settings, "ignored": [self.case, self.punctuation, self.articles]}

    def score(self, example: Example, response: Response) -> Score:
        answer = self._normalized(response.text)
        return Score(float(any(answer == self._normalized(text) for text in self._references(example))))

    def _normalized(self, text: str) -> str:
        return normalized(text, self.case, self.punctuation, self.articles)


@dataclass(frozen=True)
class TokenF1(_Compared):
    """F1 of the words with the best of the references; `exact`: equal when normalised."""

    metric: str = "token_f1"
    version: int = 1

    def score(self, example: Example, response: Response) -> Score:
        expected, answer = self._references(example), response.text
        exact = any(normalized(answer) == normalized(text) for text in expected)
        return Score(max(token_f1(answer, text) for text in expected), {"exact": float(exact)})
