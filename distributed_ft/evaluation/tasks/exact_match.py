"""Generated text against a reference, equal or not."""

from dataclasses import dataclass

from distributed_ft.data.examples import Example
from distributed_ft.evaluation.task import Response, Score, reference
from distributed_ft.evaluation.tasks.rule import FreeText


@dataclass(frozen=True)
class ExactMatch(FreeText):
    """1 if answer and reference are the same text, white space at both ends aside, else 0."""

    metric: str = "exact_match"
    version: int = 1

    def score(self, example: Example, response: Response) -> Score:
        return Score(float(response.text.strip() == reference(example).strip()))
