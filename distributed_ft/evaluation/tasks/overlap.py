"""n-grams that a generated text shares with the reference: BLEU by sacrebleu, ROUGE by rouge-score."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Response, Score, Scored, reference
from distributed_ft.evaluation.tasks.rule import FreeText, place

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Bleu(FreeText):
    """BLEU of the sentence / 100, smoothed and with effective order as sacrebleu advises for single sentences; the
    corpus' own is in `totals`, from 0 to 100 (Post 2018, arXiv:1804.08771)."""

    tokenize: str = "13a"
    lowercase: bool = False
    metric: str = "bleu"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens, "rule": [self.tokenize, self.lowercase]}

    def score(self, example: Example, response: Response) -> Score:
        found = self._bleu(True).sentence_score(response.text.strip(), [reference(example).strip()])
        return Score(min(1.0, found.score / 100))

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """`corpus_bleu`, from 0 to 100."""
        answers = [response.text.strip() for _, response, _ in scored]
        references = [reference(example).strip() for example, _, _ in scored]
        return {"corpus_bleu": float(self._bleu(False).corpus_score(answers, [references]).score)}

    def _bleu(self, sentence: bool) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(lowercase=self.lowercase, tokenize=self.tokenize, effective_order=sentence)


class _Words:
    """Words of any script, in lower case, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Rouge(FreeText):
    """F1 of one variant of ROUGE (Lin 2004); the others beside it."""

    variant: str = "rougeL"
    stemmer: bool = False
    words: bool = False  # of any script, not a-z and digits only
    metric: str = "rouge"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens, "rule": [self.variant, self.stemmer, self.words]}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a reference without a word that would count."""
        for row in rows:
            if not self._counted(reference(row)):
                raise DataError(
                    f"{place(row)}: the answer {shorten(reference(row))} has no word that ROUGE counts"
                    + ("" if self.words else " (a-z and digits); write tokenize: words")
                )

    def score(self, example: Example, response: Response) -> Score:
        found = self._scorer.score(reference(example), response.text)
        values = {name: float(found[name].fmeasure) for name in VARIANTS}
        return Score(values[self.variant], {name: v for name, v in values.items() if name != self.variant})

    def _counted(self, text: str) -> bool:
        return bool(_Words().tokenize(text)) if self.words else re.search(r"[a-z0-9]", text.lower()) is not None

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(VARIANTS), use_stemmer=self.stemmer, tokenizer=_Words() if self.words else None)
