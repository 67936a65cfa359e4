"""A second model marks each answer by a rubric; what it wrote is kept with the answer, and never asked for twice."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError, EvaluationError
from distributed_ft.evaluation.endpoint import Endpoint
from distributed_ft.evaluation.task import Response, Score, question, reference
from distributed_ft.evaluation.tasks.rule import FreeText, place

FIELDS = ("question", "answer", "reference")
_FIELD = re.compile(r"\{(question|answer|reference)\}")
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_SCORE = re.compile(rf"score\W{{0,6}}?({_NUMBER})", re.IGNORECASE)
_AT_ONCE = 8  # judgements


@dataclass(frozen=True)
class Judge(FreeText):
    """The judge's mark on a scale from 0 to 1; `mark` is as the judge gave it, in samples as the answer."""

    endpoint: Endpoint | None = None
    rubric: str = ""
    scale: tuple[float, float] = (1, 10)
    metric: str = "judge"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        judge = None if self.endpoint is None else [self.endpoint.model, self.endpoint.max_tokens]
        return {"max_new_tokens": self.max_new_tokens, "rule": [judge, self.rubric, self.scale]}

    @property
    def open_ended(self) -> bool:
        return True

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a row without the reference that the rubric shows."""
        for row in rows:
            if "{reference}" in self.rubric and not reference(row).strip():
                raise DataError(
                    f"{place(row)}: no answer, and the rubric shows {{reference}}; write it, or leave that out"
                )

    def judged(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[Response]:
        """The responses with the judgement of each. Raises EvaluationError."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._judged, examples, responses))

    def score(self, example: Example, response: Response) -> Score:
        mark = self._mark(example, response.judgement)
        low, high = self.scale
        return Score((mark - low) / (high - low), answer=f"{mark:g}")

    def asked(self, example: Example, response: Response) -> str:
        """What the judge is asked."""
        low, high = self.scale
        parts = {"question": _conversation(example), "answer": response.text, "reference": reference(example)}
        filled = _FIELD.sub(lambda match: parts[match[1]], self.rubric)  # at once: a field in an answer stays text
        return f"{filled}\n\nEnd with a line `Score: N`, where N is a number from {low:g} (worst) to {high:g} (best)."

    def _judged(self, example: Example, response: Response) -> Response:
        assert self.endpoint is not None
        try:
            judgement = self.endpoint.answer(self.asked(example, response))
        except EvaluationError as error:
            raise EvaluationError(f"item {example.id!r}: the judge gave no judgement: {error}") from None
        self._mark(example, judgement)
        return replace(response, judgement=judgement)

    def _mark(self, example: Example, judgement: str | None) -> float:
        """The number behind the last `Score`, or the number that is all of it. Raises EvaluationError."""
        text = judgement or ""
        found = _SCORE.findall(text)
        low, high = self.scale
        number = found[-1] if found else text.strip() if re.fullmatch(_NUMBER, text.strip()) else None
        if number is None:
            raise EvaluationError(
                f"item {example.id!r}: the judge's answer holds no `Score: N`, {shorten(text, 200)}; sharpen the "
                "rubric, or give it more judge_tokens"
            )
        if not low <= float(number) <= high:
            raise EvaluationError(
                f"item {example.id!r}: the judge's score {number} is not from {low:g} to {high:g}, "
                f"{shorten(text, 200)}; say the scale in the rubric"
            )
        return float(number)


def _conversation(example: Example) -> str:
    """What was asked: the question alone, or all turns with their roles."""
    turns = question(example)
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
