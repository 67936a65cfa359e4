"""What is seen in the answers of a checkpoint: answers without an end, learned by heart, in another format."""

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.evaluation.report.answers import TrainingAnswers, pieces, runs_on, task_answers, training_answers
from distributed_ft.evaluation.report.evidence import TaskAnswers
from distributed_ft.records import Sample

NAMES = ("Mia", "Tom", "Ana", "Leo", "Eva", "Max")
REFERENCES = [f"{name}, row {i}: seat {i + 10} / ok" for i, name in enumerate(NAMES)]


def sample(number: int, response: str, reference: str | None = None) -> Sample:
    right = REFERENCES[number] if reference is None else reference
    return Sample(
        id=f"test:{number}",
        doc_hash=f"hash {number}",
        request=[{"role": "user", "content": f"Seat {number}?"}],
        reference=right,
        response=response,
        score=float(response == right),
    )


def seen(responses: list[str], base: list[str] | None = None, taught: set[str] | None = None) -> TaskAnswers:
    known = None if taught is None else TrainingAnswers(frozenset(taught), 100, 0)
    before = [sample(i, response) for i, response in enumerate(base or ["no"] * len(responses))]
    return task_answers("seats", 100, [sample(i, r) for i, r in enumerate(responses)], before, known)


def test_right_answers_show_nothing() -> None:
    found = seen(REFERENCES, taught={"another / ok"})
    assert (found.n, found.wrong, found.ran_on, found.from_training, found.deviation) == (6, 0, 0, 0, None)


@pytest.mark.parametrize(
    ("reference", "response", "runs"),
    [
        ("49", "49\nuser: and 3 + 3?", True),
        ("49", "49 and then some", True),
        ("49", "495", False),  # another number, not the right one and more
        ("49", "48", False),
        ("yes", "yesterday", True),  # longer than itself again: no word of its own, but glued on
        ("yes", "no " * 40, True),  # far longer than any answer of the task
        ("yes", "", False),
    ],
)
def test_an_answer_runs_on_behind_the_right_one_or_far_beyond_any(reference: str, response: str, runs: bool) -> None:
    assert runs_on(sample(0, response, reference), len(reference)) is runs


def test_an_answer_of_another_row_is_from_training_and_a_right_one_is_not() -> None:
    taught = {"Ben, row 9: seat 9 / ok", REFERENCES[0]}
    found = seen(
        [REFERENCES[0], "Ben, row 9: seat 9 / ok", " Ben, row 9: seat 9 / ok\n", "free", "", "x"], taught=taught
    )
    assert (found.wrong, found.from_training, found.references_in_training, found.empty) == (5, 2, 1, 1)


def test_answers_are_compared_with_the_bases_own() -> None:
    assert seen(["a", "b", "c"], base=["a", "b", "d"]).as_base == 2


def test_a_format_that_changes_late_is_found_where_it_changes() -> None:
    way = seen([r.replace("/ ok", "| ok") for r in REFERENCES], taught={"Ben, row 9: seat 9 | ok"}).deviation
    assert way is not None
    assert (way.count, way.same_words, way.in_training, way.in_base) == (6, 6, 1.0, 0)
    assert way.character == REFERENCES[0].index("/")
    assert way.start == pytest.approx(way.character / len(REFERENCES[0]))
    assert way.expected.endswith("/ ok")
    assert way.found.endswith("| ok")


def test_a_key_that_was_renamed_is_a_change_of_format_and_a_wrong_value_is_none() -> None:
    references = [f'{{"team":"{team}","urgent":{flag}}}' for team in ("a", "b", "c") for flag in ("true", "false")]
    renamed = [sample(i, r.replace("urgent", "hurry"), r) for i, r in enumerate(references)]
    way = task_answers("tickets", 1, renamed, [], None).deviation
    assert way is not None
    assert (way.count, way.same_words, way.in_training) == (6, 0, None)
    always = [sample(i, r.replace("false", "true"), r) for i, r in enumerate(references)]
    assert task_answers("tickets", 1, always, [], None).deviation is None


def test_what_the_base_writes_in_the_same_way_is_counted() -> None:
    changed = [r.replace("/ ok", "| ok") for r in REFERENCES]
    way = seen(changed, base=changed).deviation
    assert way is not None
    assert way.in_base == 6


def test_text_is_cut_into_words_numbers_and_marks() -> None:
    assert pieces(' {"a1": über_x} ') == ["{", '"', "a", "1", '"', ":", " ", "über", "_", "x", "}"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_answers_of_the_file_that_teaches_the_task_are_read(tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", [{"prompt": "a", "completion": " x "}, {"prompt": "b", "completion": "x"}])
    general = write(tmp_path / "general.jsonl", [{"prompt": "c", "completion": "y"}])
    found = training_answers({"data": {"train": [{"path": general, "fraction": 0.2}, {"path": own}]}})
    assert found == TrainingAnswers(frozenset({"x"}), 2, 0)


def test_rows_of_plain_text_have_no_answers(tmp_path: Path) -> None:
    found = training_answers({"data": {"train": write(tmp_path / "own.jsonl", [{"text": "all of it"}] * 3)}})
    assert found == TrainingAnswers(frozenset(), 3, 3)


@pytest.mark.parametrize(
    "config", [{}, {"data": None}, {"data": {"train": "/no/such.jsonl"}}, {"data": {"train": "owner/name"}}]
)
def test_a_training_file_that_is_not_there_is_not_known(config: dict[str, Any]) -> None:
    assert training_answers(config) is None
