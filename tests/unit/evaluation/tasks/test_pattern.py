from pathlib import Path

import pytest
from support.tasks import answered, config_of, score_of, task_of

from distributed_ft.errors import ConfigError, EvaluationError
from distributed_ft.evaluation.tasks import build_task

ANSWER = r"answer is \((\w)\)"


@pytest.mark.parametrize(
    ("answer", "expected", "options", "value", "taken"),
    [
        ("The answer is (B).", "B", {}, 1, "B"),
        ("The answer is (A). No, the answer is (B).", "B", {}, 1, "B"),
        ("The answer is (A). No, the answer is (B).", "A", {"take": "first"}, 1, "A"),
        ("The answer is (b).", "B", {}, 0, "b"),
        ("The ANSWER IS (b).", "B", {"ignore_case": True}, 1, "b"),
        ("The answer is (B).", "I think that the answer is (B)", {}, 1, "B"),  # the reference is read alike
        ("B", "B", {}, 0, None),
        ("", "B", {}, 0, None),
    ],
)
def test_what_the_group_finds_is_compared(
    tmp_path: Path, answer: str, expected: str, options: dict[str, object], value: int, taken: str | None
) -> None:
    task = task_of(tmp_path, [answered(expected)], metric="regex", pattern=ANSWER, **options)
    score = score_of(task, answer)
    assert (score.value, score.answer) == (value, taken)
    assert score.further == {"found": float(taken is not None)}


def test_without_a_group_the_whole_finding_counts(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered("2024-01-31")], metric="regex", pattern=r"\d{4}-\d\d-\d\d")
    assert score_of(task, "due on 2024-01-31, noon").value == 1


@pytest.mark.parametrize(("answer", "value"), [("AB-12", 1), (" AB-12\n", 1), ("AB-12.", 0), ("", 0)])
def test_fullmatch_asks_for_a_form_and_not_for_a_reference(tmp_path: Path, answer: str, value: int) -> None:
    task = task_of(tmp_path, [answered("anything")], metric="regex", pattern=r"[A-Z]{2}-\d+", fullmatch=True)
    assert score_of(task, answer).value == value


def test_a_pattern_that_finds_no_end_is_an_error_that_names_the_item(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered("x", id="row 7")], metric="regex", pattern=r"(a|aa)+$", fullmatch=True)
    with pytest.raises(EvaluationError, match=r"item 'row 7': the pattern .* found no end"):
        score_of(task, "a" * 60 + "!")


def test_a_pattern_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    config = config_of(name="t", path=str(tmp_path / "rows.jsonl"), metric="regex", pattern="(")
    with pytest.raises(ConfigError, match=r"evaluation\.tasks\[t\]\.pattern: \"\(\" is not a regular expression"):
        build_task(config)
