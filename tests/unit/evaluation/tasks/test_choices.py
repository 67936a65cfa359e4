"""Multiple choice and classification by likelihood, against arithmetic on given log-likelihoods."""

import math
from pathlib import Path
from typing import Any

import pytest
from support.tasks import answered, task_of

from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Choose, Response, Task


def answer(task: Task, *nats: float) -> Response:
    return Response(nats=nats, tokens=(1,) * len(nats), greedy=(False,) * len(nats))


def item(reference: Any, choices: Any = ("no", "perhaps", "yes"), **more: Any) -> dict[str, Any]:
    return answered(reference, "Is it so?", choices=list(choices) if isinstance(choices, tuple) else choices, **more)


def test_acc_takes_the_likeliest_choice_and_acc_norm_the_likeliest_by_byte(tmp_path: Path) -> None:
    # -2 / 2 bytes = -1, -6 / 7 bytes = -0.857, -4 / 3 bytes = -1.33
    for normalize, value, taken in ((True, 1.0, "perhaps"), (False, 0.0, "no")):
        task = task_of(tmp_path, [item("perhaps")], metric="multiple_choice", normalize=normalize)
        score = task.score(task.examples()[0], answer(task, -2.0, -6.0, -4.0))
        assert (score.value, score.answer) == (value, taken)
        assert score.further == {"acc": 0.0, "acc_norm": 1.0}


def test_length_is_counted_in_bytes_and_equals_go_to_the_first(tmp_path: Path) -> None:
    task = task_of(tmp_path, [item("été", ("été", "abcd"))], metric="multiple_choice")
    score = task.score(task.examples()[0], answer(task, -5.0, -4.0))  # 5 bytes against 4
    assert score.further == {"acc": 0.0, "acc_norm": 1.0}


@pytest.mark.parametrize(
    ("reference", "form", "right"),
    [
        ("yes", "auto", 2),
        (" yes ", "text", 2),
        ("C", "auto", 2),
        ("(c)", "letter", 2),
        ("C.", "auto", 2),
        (2, "auto", 2),
        ("0", "index", 0),
        (3, "number", 2),
    ],
)
def test_the_answer_is_a_text_a_letter_an_index_or_a_number(
    tmp_path: Path, reference: Any, form: str, right: int
) -> None:
    task = task_of(tmp_path, [item(reference)], metric="multiple_choice", answer=form, normalize=False)
    nats = [-1.0 if place == right else -9.0 for place in range(3)]
    assert task.score(task.examples()[0], answer(task, *nats)).value == 1.0


def test_choices_may_be_fixed_or_in_another_column_or_in_the_form_of_arc(tmp_path: Path) -> None:
    options = [item("yes", None, options=["yes", "no"])]
    task = task_of(tmp_path, options, metric="multiple_choice", choices_column="options")
    assert task.request(task.examples()[0]).choices == ("yes", "no")  # type: ignore[union-attr]
    task = task_of(tmp_path, [answered("B")], metric="multiple_choice", choices=["yes", "no"])
    assert task.request(task.examples()[0]).choices == ("yes", "no")  # type: ignore[union-attr]
    arc = {"text": ["red", "blue"], "label": ["1", "2"]}
    task = task_of(tmp_path, [item("2", arc)], metric="multiple_choice", answer="letter", normalize=False)
    assert task.score(task.examples()[0], answer(task, -9.0, -1.0)).value == 1.0


def test_letters_are_shown_below_the_question_and_asked_for(tmp_path: Path) -> None:
    task = task_of(tmp_path, [item("yes")], metric="multiple_choice", letters=True)
    asked = task.request(task.examples()[0])
    assert isinstance(asked, Choose)
    assert asked.messages[-1].content == "Is it so?\nA. no\nB. perhaps\nC. yes"
    assert asked.choices == ("A", "B", "C")
    score = task.score(task.examples()[0], answer(task, -2.0, -3.0, -1.0))
    assert (score.value, score.answer) == (1.0, "yes")


def test_chance_is_the_mean_of_one_over_the_choices(tmp_path: Path) -> None:
    rows = [item("yes", ("yes", "no")), item("a", ("a", "b", "c", "d"))]
    assert task_of(tmp_path, rows, metric="multiple_choice").chance == pytest.approx((1 / 2 + 1 / 4) / 2)


@pytest.mark.parametrize(
    ("row", "keys", "says"),
    [
        (answered("yes"), {}, r"rows\.jsonl:1: nothing in the column 'choices', which metric multiple_choice"),
        (
            item("maybe"),
            {},
            r"rows\.jsonl:1: the answer \"maybe\" is none of the choices \[\"no\", \"perhaps\", \"yes\"\]",
        ),
        (item(3), {}, r"counted from 1\? Then write answer: number"),
        (item("D"), {"answer": "letter"}, "none of the choices .* by its letter"),
        (item("1", ("1", "0", "2")), {}, "could mean several of the choices"),
        (item("yes", ("yes",)), {}, "not two or more different texts"),
        (item("yes", ("yes", "yes")), {}, "not two or more different texts"),
        (item("yes", "yes or no"), {}, 'holds "yes or no", not a list'),
    ],
)
def test_a_row_that_cannot_be_chosen_from_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        task_of(tmp_path, [row], metric="multiple_choice", **keys)


def test_the_digest_covers_the_choices(tmp_path: Path) -> None:
    digests = {
        task_of(tmp_path, [row], metric="multiple_choice", **keys).digest
        for row, keys in [
            (item("yes"), {}),
            (item("yes", ("no", "yes")), {}),
            (item("yes"), {"normalize": False}),
            (item("yes"), {"letters": True}),
        ]
    }
    assert len(digests) == 4


# --- classification ------------------------------------------------------------------------------------------------

LABELS = ["billing", "not billing", "other"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("billing", "billing"),
        (" Billing.\n", "billing"),
        ("**billing**", "billing"),
        ("The category is billing.", "billing"),
        ("This is not billing", "not billing"),  # the longer label, and not the one inside it
        ("billing or other", "(none)"),
        ("rebilling", "(none)"),
        ("", "(none)"),
        ("no idea", "(none)"),
    ],
)
def test_an_answer_names_one_label_or_none(tmp_path: Path, text: str, named: str) -> None:
    rows = [answered("billing")]
    task = task_of(tmp_path, rows, metric="classification", labels=LABELS)
    score = task.score(task.examples()[0], Response((text,)))
    assert (score.value, score.answer) == (float(named == "billing"), named)
    assert score.further == {"names_a_label": float(named != "(none)")}


def test_a_label_is_found_in_an_answer_in_any_case_of_any_script(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered("Straße"), answered("Weg")], metric="classification")
    for text in ("Das ist eine Straße.", "Eine STRASSE ist das."):
        assert task.score(task.examples()[0], Response((text,))).value == 1


def test_macro_f1_and_confusion_are_those_of_a_table(tmp_path: Path) -> None:
    """Right: a a a b b c. Named: a a b b - a. By hand: F1(a) = 2·2/(3+3) = 2/3, F1(b) = 2·1/(2+2) = 1/2, F1(c) = 0."""
    rows = [answered(label, f"q{i}") for i, label in enumerate("aaabbc")]
    task = task_of(tmp_path, rows, metric="classification")
    responses = [Response((text,)) for text in ("a", "a", "b", "b", "what?", "a")]
    scored = [(e, r, task.score(e, r)) for e, r in zip(task.examples(), responses, strict=True)]
    totals = task.totals(scored)
    assert [score.value for _, _, score in scored] == [1, 1, 0, 1, 0, 0]
    assert totals["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert totals["majority"] == 0.5
    assert {name: value for name, value in totals.items() if name.startswith("confusion")} == {
        "confusion[a -> a]": 2,
        "confusion[a -> b]": 1,
        "confusion[b -> b]": 1,
        "confusion[b -> (none)]": 1,
        "confusion[c -> a]": 1,
    }
    assert task.chance == pytest.approx(1 / 3)


def test_the_likeliest_label_is_taken_where_nothing_is_written(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered("b"), answered("a", "q2")], metric="classification", by="likelihood")
    asked = task.request(task.examples()[0])
    assert isinstance(asked, Choose)
    assert asked.choices == ("a", "b")
    score = task.score(task.examples()[0], answer(task, -2.0, -1.0))
    assert (score.value, score.answer) == (1.0, "b")


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered(0), answered(1, "q2")], metric="classification")
    assert task.score(task.examples()[1], Response(("Label: 1",))).value == 1.0


@pytest.mark.parametrize(
    ("references", "keys", "says"),
    [
        (["a", "c"], {"labels": ["a", "b"]}, r"rows\.jsonl:2: the answer \"c\" is none of the labels a, b"),
        (["a", "a"], {}, "1 labels in the file"),
        (["a", "A"], {}, "cannot be told from another"),
    ],
)
def test_labels_that_do_not_fit_the_rows_are_refused(
    tmp_path: Path, references: list[str], keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        task_of(tmp_path, [answered(r, f"q{i}") for i, r in enumerate(references)], metric="classification", **keys)


# --- perplexity ----------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_all_texts_together(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"text": "two words"}, {"text": "één"}], metric="perplexity")
    responses = [
        Response(nats=(-6.0,), tokens=(3,), greedy=(False,)),
        Response(nats=(-2.0,), tokens=(1,), greedy=(True,)),
    ]
    scored = [(e, r, task.score(e, r)) for e, r in zip(task.examples(), responses, strict=True)]
    assert [score.value for _, _, score in scored] == pytest.approx([math.exp(-2), math.exp(-2)])
    totals = task.totals(scored)
    assert totals["perplexity"] == pytest.approx(math.exp(8 / 4))
    assert totals["word_perplexity"] == pytest.approx(math.exp(8 / 3))
    assert totals["byte_perplexity"] == pytest.approx(math.exp(8 / 14))  # 9 and 5 bytes
    assert totals["bits_per_byte"] == pytest.approx(8 / 14 / math.log(2))


def test_the_reference_of_a_conversation_is_read_behind_its_question(tmp_path: Path) -> None:
    task = task_of(tmp_path, [answered("because")], metric="perplexity")
    asked = task.request(task.examples()[0])
    assert isinstance(asked, Choose)
    assert asked.choices == ("because",)
    assert [m.content for m in asked.messages] == ["q"]


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: an empty text"):
        task_of(tmp_path, [{"text": "a"}, {"text": " "}], metric="perplexity")


def test_plain_text_has_no_answer_for_another_metric(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plain text has no question and no answer"):
        task_of(tmp_path, [{"text": "a"}], metric="token_f1")
