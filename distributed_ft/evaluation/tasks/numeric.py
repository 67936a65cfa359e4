"""A number in a generated text against the number of the reference."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Response, Score, reference
from distributed_ft.evaluation.tasks.rule import FreeText, place

_SPACES = "   "  # between thousands: no-break, narrow no-break and thin space
_LONGEST = 400  # digits; what is longer is no number that anybody meant


@dataclass(frozen=True)
class Number:
    """A number as it stands in a text; `value` is exact, and 0.12 for 12%."""

    value: Fraction
    percent: bool
    text: str


def _pattern(decimal_comma: bool) -> re.Pattern[str]:
    thousands, point = (r"\.", ",") if decimal_comma else (",", r"\.")
    whole = rf"\d{{1,3}}(?:[{thousands}'’{_SPACES}]\d{{3}})+(?!\d)|\d+"
    number = rf"(?:(?:{whole})(?:{point}\d+)?|{point}\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?"
    fraction = r"(?:(?P<mixed>\d+)\s+)?(?P<above>\d+)\s?/\s?(?P<below>\d+)(?![\d/])"
    # a sign belongs to the number unless something stands before it: 5-3 holds 5 and 3
    return re.compile(
        rf"(?<![\w/{point}])(?P<sign>(?<![\w)])[-+−])?[$€£¥]?\s?(?:{fraction}|(?P<number>{number}))\s?(?P<percent>%)?"
    )


_PATTERNS = {comma: _pattern(comma) for comma in (False, True)}


def numbers(text: str, decimal_comma: bool = False) -> list[Number]:
    """All numbers of a text, in order: 1,234.5 and 1 234.5, -3, 2e-4, 12%, 3/4, 1 1/2, ½.

    Thousands may be set off by a comma (or a point, with `decimal_comma`), an apostrophe or a narrow space. Digits
    that are part of a word (GPT4) are no number.
    """
    found = []
    for match in _PATTERNS[decimal_comma].finditer(_without_vulgar_fractions(text)):
        value = _value(match, decimal_comma)
        if value is not None:
            found.append(Number(value, match["percent"] is not None, match[0].strip()))
    return found


def _value(match: re.Match[str], decimal_comma: bool) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    if match["above"] is not None:
        if int(match["below"]) == 0:
            return None
        value = int(match["mixed"] or 0) + Fraction(int(match["above"]), int(match["below"]))
    else:
        digits = re.sub(rf"['’{_SPACES}]", "", match["number"])
        digits = digits.replace(".", "").replace(",", ".") if decimal_comma else digits.replace(",", "")
        value = Fraction(digits)
    value = value / 100 if match["percent"] else value
    return -value if match["sign"] in ("-", "−") else value


def _without_vulgar_fractions(text: str) -> str:
    """½ as ` 1/2`."""
    if text.isascii():
        return text
    return "".join(
        f" {unicodedata.normalize('NFKC', c).replace('⁄', '/')} " if "⁄" in unicodedata.normalize("NFKC", c) else c
        for c in text
    )


def close(answer: Number, expected: Number, tolerance: float, relative: float) -> bool:
    """Whether they differ by no more than the larger of both tolerances; exact, so that 0.31 is within 0.01 of 0.3.

    Where one of them alone has a percent sign, 12% is 0.12 and also 12: the sign may stand in the question.
    """
    allowed = max(Fraction(str(tolerance)), Fraction(str(relative)) * abs(expected.value))
    if abs(answer.value - expected.value) <= allowed:
        return True
    if answer.percent == expected.percent:
        return False
    ours, theirs = (n.value * 100 if n.percent else n.value for n in (answer, expected))
    return abs(ours - theirs) <= max(Fraction(str(tolerance)), Fraction(str(relative)) * abs(theirs))


@dataclass(frozen=True)
class Numeric(FreeText):
    """1 if the last (or first) number of the answer is close to that of the reference, else 0.

    The number of a reference is its only one, or else the one behind a last `####`, as GSM8K has it.
    """

    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    take: Literal["last", "first"] = "last"
    decimal_comma: bool = False
    metric: str = "numeric"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        tolerances = [self.tolerance, self.relative_tolerance]
        return {"max_new_tokens": self.max_new_tokens, "rule": [*tolerances, self.take, self.decimal_comma]}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a reference that is not one number."""
        for row in rows:
            found = len(self._of_reference(row))
            if found != 1:
                raise DataError(
                    f"{place(row)}: the answer {shorten(reference(row))} holds {found or 'no'} numbers; metric numeric "
                    "needs exactly one, or one behind ####"
                )

    def score(self, example: Example, response: Response) -> Score:
        found = numbers(response.text, self.decimal_comma)
        if not found:
            return Score(0.0, {"has_number": 0.0})
        taken = found[-1 if self.take == "last" else 0]
        right = close(taken, self._of_reference(example)[0], self.tolerance, self.relative_tolerance)
        return Score(float(right), {"has_number": 1.0}, taken.text)

    def _of_reference(self, row: Example) -> list[Number]:
        return numbers(reference(row).rpartition("####")[2], self.decimal_comma)
