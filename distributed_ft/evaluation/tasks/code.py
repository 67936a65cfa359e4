"""Python that a model wrote, run with its tests in the sandbox: pass@k."""

import ast
import math
import os
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError, EvaluationError
from distributed_ft.evaluation.sandbox import Limits, run_python
from distributed_ft.evaluation.task import Generate, Request, Response, Score, question
from distributed_ft.evaluation.tasks.rule import FreeText, column, listed, place

_FENCE = re.compile(r"```[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_STOP = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\n```")  # where a continued function is over
_NAME = re.compile(r"[A-Za-z_]\w*")


def pass_at_k(draws: int, passed: int, k: int) -> float:
    """Probability that at least one of k answers passes, unbiased from `draws` answers of which `passed` did.

    1 - C(draws - passed, k) / C(draws, k): Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    return 1 - math.comb(draws - passed, k) / math.comb(draws, k)


def code_of(answer: str) -> str:
    """The code in an answer: its first block fenced as Python, or fenced at all, or all of it."""
    blocks = list(_FENCE.finditer(answer))
    python = [block for block in blocks if block["language"].lower() in ("python", "python3", "py")]
    chosen = next(iter([*python, *blocks]), None)
    return answer if chosen is None else chosen["code"]


@dataclass(frozen=True)
class PassAtK(FreeText):
    """pass@k of an item: how probably one of k answers passes its tests. Further: the other k."""

    k: tuple[int, ...] = (1,)
    draws: int = 1
    temperature: float = 0.0
    seed: int = 0
    tests: str = "tests"
    entry_point: str | None = None
    complete: bool = False
    limits: Limits = field(default_factory=Limits)
    metric: str = "pass_at_k"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        asked = [self.max_new_tokens, self.k, self.draws, self.temperature, self.seed, self.complete]
        return {"rule": [*asked, self.tests, self.entry_point, self.limits.seconds, self.limits.memory]}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a row without tests, or with tests that are no Python."""
        for row in rows:
            tests = self._tests(row)
            try:
                with warnings.catch_warnings(action="ignore"):
                    ast.parse(tests)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise DataError(
                    f"{place(row)}: the tests {shorten(tests)} are not Python: {error}; correct them"
                ) from None

    def request(self, example: Example) -> Request:
        return Generate(
            example.id,
            question(example),
            self.max_new_tokens,
            example.tools,
            stop=_STOP if self.complete else (),
            draws=self.draws,
            temperature=self.temperature,
            seed=self.seed,
            open_ended=True,
        )

    def score(self, example: Example, response: Response) -> Score:
        """Runs each different answer once, as many at a time as there are cores. Raises EvaluationError."""
        distinct = list(dict.fromkeys(response.texts))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            verdicts = dict(zip(distinct, pool.map(lambda text: self._passes(example, text), distinct), strict=True))
        passed = sum(verdicts[text] for text in response.texts)
        values = {f"pass@{k}": pass_at_k(len(response.texts), passed, k) for k in self.k}
        return Score(values[f"pass@{self.k[0]}"], values if len(values) > 1 else {})

    def _passes(self, example: Example, answer: str) -> bool:
        """Whether the program came to its end: it says then a word that stands in no output of honest code."""
        code = code_of(answer)
        if self.complete:
            code = f"{question(example)[-1].content}{code}"
        word = secrets.token_hex(16)
        program = "\n".join([code, self._tests(example), f"import os\nos.write(1, b'\\n{word}\\n')"])
        try:
            outcome = run_python(program, self.limits)
        except RuntimeError as error:
            raise EvaluationError(f"item {example.id!r}: {error}") from None
        return outcome.succeeded and f"\n{word}\n" in outcome.output

    def _tests(self, row: Example) -> str:
        text = column(row, self.tests, self.metric, "tests_column")
        if text.lstrip().startswith("["):  # a list of assertions, as MBPP has them
            text = "\n".join(str(test) for test in listed(row, self.tests, self.metric, "tests_column"))
        if self.entry_point is None:
            return text
        name = column(row, self.entry_point, self.metric, "entry_point_column").strip()
        if not _NAME.fullmatch(name):
            raise DataError(f"{place(row)}: the entry point {shorten(name)} is no name of a function; correct the row")
        return f"{text}\ncheck({name})"
