"""What a regular expression finds in a generated text, against the reference; or the text against the expression."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import regex

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import ConfigError, EvaluationError
from distributed_ft.evaluation.task import Response, Score, reference
from distributed_ft.evaluation.tasks.rule import FreeText

_SECONDS = 2.0  # that a search may take: a pattern such as (a+)+$ takes for ever on some answers


@dataclass(frozen=True)
class Pattern(FreeText):
    """1 if the last (or first) finding in the answer is what is expected, white space at both ends aside.

    Expected is what the pattern finds in the reference, or the whole reference where it finds nothing. With
    `fullmatch`: 1 if the pattern matches the whole answer, white space at both ends aside.
    """

    pattern: str = ""
    take: Literal["last", "first"] = "last"
    fullmatch: bool = False
    ignore_case: bool = False
    metric: str = "regex"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        rule = [self.pattern, self.take, self.fullmatch, self.ignore_case]
        return {"max_new_tokens": self.max_new_tokens, "rule": rule}

    @property
    def open_ended(self) -> bool:
        return self.fullmatch

    def score(self, example: Example, response: Response) -> Score:
        if self.fullmatch:
            text = response.text.strip()
            matched = self._timed(example, lambda: self._compiled.fullmatch(text, timeout=_SECONDS))
            return Score(float(matched is not None))
        found = self._find(example, response.text)
        expected = self._find(example, reference(example))
        expected = reference(example).strip() if expected is None else expected
        right = found is not None and self._folded(found) == self._folded(expected)
        return Score(float(right), {"found": float(found is not None)}, found)

    @cached_property
    def _compiled(self) -> Any:
        return compiled(self.pattern, self.ignore_case)

    def _folded(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text

    def _find(self, example: Example, text: str) -> str | None:
        def search() -> list[Any]:
            return [
                match[1 if self._compiled.groups else 0] for match in self._compiled.finditer(text, timeout=_SECONDS)
            ]

        found = [text for text in self._timed(example, search) if text is not None]
        return str(found[-1 if self.take == "last" else 0]).strip() if found else None

    def _timed(self, example: Example, search: Callable[[], Any]) -> Any:
        try:
            return search()
        except TimeoutError:
            raise EvaluationError(
                f"item {example.id!r}: the pattern {self.pattern!r} found no end in {_SECONDS:g} seconds; write it "
                "without repetitions inside repetitions"
            ) from None


def compiled(pattern: str, ignore_case: bool = False, key: str = "pattern") -> Any:
    """Of the `regex` module, whose searches can be ended. Raises ConfigError."""
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except regex.error as error:
        raise ConfigError(f"{key}: {shorten(pattern)} is not a regular expression: {error}") from None
