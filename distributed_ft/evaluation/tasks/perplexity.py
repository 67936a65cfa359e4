"""How likely the model holds a text: the reference behind its question, or rows of plain text."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_ft.data.examples import TEXT, Example
from distributed_ft.evaluation.task import Choose, Read, Request, Response, Score, Scored, question, reference


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean log-likelihood of the item's tokens: the geometric mean of their probabilities, in (0, 1]."""

    metric: str = "perplexity"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def check(self, rows: Sequence[Example]) -> None:
        pass

    def chance(self, rows: Sequence[Example]) -> float:
        return 0.0

    def request(self, example: Example) -> Request:
        if example.messages[0].role == TEXT:
            return Read(example.id, reference(example))
        return Choose(example.id, question(example), (reference(example),), example.tools)

    def score(self, example: Example, response: Response) -> Score:
        return Score(math.exp(response.nats[0] / response.tokens[0]), {"greedy": float(response.greedy[0])})

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Of all texts together: perplexity of a token, a word and a byte, and bits of a byte.

        Words and bytes are counted as lm-evaluation-harness does: pieces between white space, UTF-8. What is larger
        than a float holds is left out.
        """
        nats = math.fsum(response.nats[0] for _, response, _ in scored)
        tokens = sum(response.tokens[0] for _, response, _ in scored)
        words = sum(len(re.split(r"\s+", reference(example))) for example, _, _ in scored)
        size = sum(len(reference(example).encode()) for example, _, _ in scored)
        counts = {"perplexity": tokens, "word_perplexity": words, "byte_perplexity": size}
        found = {name: math.exp(-nats / n) for name, n in counts.items() if -nats / n < 700}
        return {**found, "bits_per_byte": -nats / size / math.log(2)}
