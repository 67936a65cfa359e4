"""Against a table that was worked out by hand from SQuAD 1.1's and 2.0's rules."""

from pathlib import Path

import pytest
from support.tasks import answered, score_of, task_of

from distributed_ft.errors import DataError
from distributed_ft.evaluation.tasks.squad import normalized, token_f1

# answer, reference, equal when normalised, F1
TABLE = [
    ("The Eiffel Tower", "Eiffel tower.", 1, 1.0),
    ("a cat sat", "the cat sat", 1, 1.0),
    ("It was in 1889, in Paris", "Paris", 0, 2 * (1 / 6) * 1 / (1 / 6 + 1)),
    ("cat cat dog", "cat dog dog", 0, 2 / 3),  # each word as often as both have it: cat once, dog once
    ("Mr. O'Neil", "mr oneil", 1, 1.0),
    ("well-known", "well known", 0, 0.0),  # the hyphen is taken out, not replaced
    ("Theatre", "the theatre", 1, 1.0),
    ("", "Paris", 0, 0.0),
    ("the", "Paris", 0, 0.0),
    ("  new \n york ", "New York", 1, 1.0),
    ("Zürich", "zürich", 1, 1.0),
]


@pytest.mark.parametrize(("answer", "expected", "exact", "f1"), TABLE)
def test_answers_are_scored_as_in_the_table(tmp_path: Path, answer: str, expected: str, exact: int, f1: float) -> None:
    words = score_of(task_of(tmp_path, [answered(expected)], metric="token_f1"), answer)
    assert words.value == pytest.approx(f1, abs=1e-12)
    assert words.further == {"exact": exact}
    assert score_of(task_of(tmp_path, [answered(expected)], metric="normalized_match"), answer).value == exact


def test_two_texts_without_words_are_the_same() -> None:
    assert token_f1("the", "a!") == 1.0


@pytest.mark.parametrize(
    ("option", "same", "different"),
    [
        ("ignore_case", "the yes.", "YES"),
        ("ignore_punctuation", "THE yes", "yes."),
        ("ignore_articles", "YES.", "the yes"),
    ],
)
def test_each_step_can_be_left_out(tmp_path: Path, option: str, same: str, different: str) -> None:
    task = task_of(tmp_path, [answered("yes")], metric="normalized_match", **{option: False})
    assert score_of(task, same).value == 1.0
    assert score_of(task, different).value == 0.0


def test_articles_are_found_in_either_case_where_case_is_kept() -> None:
    assert normalized("The Cat", case=False) == "Cat"


def test_the_best_of_several_references_counts(tmp_path: Path) -> None:
    rows = [answered("New York City", others=["Big Apple", "NYC"]), answered("x", others=["y"])]
    for metric, value in (("token_f1", 1.0), ("normalized_match", 1.0)):
        task = task_of(tmp_path, rows, metric=metric, references_column="others")
        assert score_of(task, "the big apple").value == value
        assert score_of(task, "Boston").value == 0.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (answered("The"), r"rows\.jsonl:1: of the answer \"The\" nothing is left"),
        (answered("yes", others=None), r"rows\.jsonl:1: nothing in the column 'others'"),
        (answered("yes", others="no list"), r"rows\.jsonl:1: the column 'others' holds \"no list\", not a list"),
        (answered("yes", others=[]), "not a list with something in it"),
        (answered("yes", others=[{"a": 1}]), "which is no text"),
    ],
)
def test_references_that_cannot_be_compared_are_refused_with_their_line(
    tmp_path: Path, row: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        task_of(
            tmp_path, [row], metric="normalized_match", **({"references_column": "others"} if "others" in row else {})
        )
