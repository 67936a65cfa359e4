from fractions import Fraction
from pathlib import Path

import pytest
from support.tasks import answered, score_of, task_of

from distributed_ft.errors import DataError
from distributed_ft.evaluation.tasks.numeric import numbers

HALF = Fraction(1, 2)
TEXTS: list[tuple[str, list[float | Fraction]]] = [
    ("The answer is 42.", [42]),
    ("1,234,567.5 people", [Fraction("1234567.5")]),
    ("1 234 567 or 1’234", [1234567, 1234]),
    ("10, 20, and 30", [10, 20, 30]),
    ("1,23", [1, 23]),  # no thousands: two digits behind the comma
    ("5-3", [5, 3]),
    ("x = -3, y = −4", [-3, -4]),
    ("$-5 and -$5", [-5, -5]),
    ("2e-4 and 1.5E3", [Fraction("0.0002"), 1500]),
    ("12% or 12.5 %", [Fraction(12, 100), Fraction(125, 1000)]),
    ("3/4, 1 1/2, -1/4", [Fraction(3, 4), Fraction(3, 2), Fraction(-1, 4)]),
    ("½ or 2½", [HALF, Fraction(5, 2)]),
    (".5", [HALF]),
    ("GPT4 has 7b", [7]),
    ("v1.2", []),
    ("1/0", []),
    ("none", []),
    ("1e99999", [1]),  # not a number of a hundred thousand digits
    ("9" * 1000, []),
    ("(12)", [12]),
    ("$1,000", [1000]),
]


@pytest.mark.parametrize(("text", "found"), TEXTS)
def test_the_numbers_of_a_text_are_found(text: str, found: list[Fraction]) -> None:
    assert [number.value for number in numbers(text)] == found


def test_a_decimal_comma_swaps_comma_and_point() -> None:
    assert [number.value for number in numbers("1.234,5 und 0,25", decimal_comma=True)] == [
        Fraction("1234.5"),
        Fraction(1, 4),
    ]


# answer, reference, options, score
SCORES = [
    ("so it is 42", "42", {}, 1),
    ("42 is not 43", "42", {}, 0),
    ("42 is not 43", "42", {"take": "first"}, 1),
    ("42.0", "42", {}, 1),
    ("0.31", "0.3", {"tolerance": 0.01}, 1),  # in floats, 0.31 - 0.3 is more than 0.01
    ("0.3101", "0.3", {"tolerance": 0.01}, 0),
    ("99", "100", {"relative_tolerance": 0.01}, 1),
    ("98.9", "100", {"relative_tolerance": 0.01}, 0),
    ("-99", "-100", {"relative_tolerance": 0.01}, 1),
    ("101", "100", {"tolerance": 0.5, "relative_tolerance": 0.01}, 1),  # the larger counts
    ("12%", "0.12", {}, 1),
    ("12%", "12", {}, 1),
    ("0.12", "12%", {}, 1),
    ("12", "12%", {}, 1),
    ("1.2", "12%", {}, 0),
    ("three quarters, 3/4", "0.75", {}, 1),
    ("1,000", "1000", {}, 1),
    ("1,5", "1.5", {}, 0),
    ("1,5", "1,5", {"decimal_comma": True}, 1),
    ("5", "2 + 3 is\n#### 5", {}, 1),
    ("", "5", {}, 0),
]


@pytest.mark.parametrize(("answer", "expected", "options", "score"), SCORES)
def test_an_answer_is_right_within_the_tolerance(
    tmp_path: Path, answer: str, expected: str, options: dict[str, object], score: int
) -> None:
    found = score_of(task_of(tmp_path, [answered(expected)], metric="numeric", **options), answer)
    assert found.value == score
    assert found.further == {"has_number": float(any(c.isdigit() for c in answer))}


def test_a_reference_may_be_a_number_in_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "2 + 2", "completion": 4}, {"prompt": "1 / 2", "completion": 0.5}]
    task = task_of(tmp_path, rows, metric="numeric")
    assert score_of(task, "It is 4.").value == 1
    assert score_of(task, "It is 4.").answer == "4"


@pytest.mark.parametrize(("reference", "says"), [("many", "holds no numbers"), ("2 or 3", "holds 2 numbers")])
def test_a_reference_that_is_not_one_number_is_refused(tmp_path: Path, reference: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: the answer .*{says}; metric numeric"):
        task_of(tmp_path, [answered("1"), answered(reference)], metric="numeric")
