import json
import time
from collections import Counter
from pathlib import Path

import pytest

from distributed_ft.config.schema import DataConfig
from distributed_ft.data.examples import Example, Message
from distributed_ft.data.reading import read_examples
from distributed_ft.evaluation.few_shot import choose, fitted, rows_to_show, source_of_examples, with_examples
from distributed_ft.evaluation.task import Generate, Request


def example(number: int, group: str | None = None, system: str | None = None) -> Example:
    before = (Message("system", system),) if system else ()
    messages = (*before, Message("user", f"question {number}"), Message("assistant", f"answer {number}"))
    return Example(f"e{number}", messages, number, "train.jsonl", group)


TRAIN = [example(i, group="abc"[i % 3]) for i in range(30)]


def test_the_choice_is_a_function_of_seed_and_rows() -> None:
    first = choose(TRAIN, 4, seed=0, held_out=())
    assert first == choose(list(reversed(TRAIN)), 4, seed=0, held_out=())
    assert first != choose(TRAIN, 4, seed=1, held_out=())


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_distinct_as_far_as_there_are_any(seed: int) -> None:
    groups = Counter(e.group for e in choose(TRAIN, 5, seed, held_out=()))
    assert len(groups) == 3
    assert groups.total() == 5


def test_rows_without_groups_are_chosen_too() -> None:
    assert len(choose([example(i) for i in range(9)], 4, seed=0, held_out=())) == 4


def test_what_a_held_out_item_asks_is_never_shown() -> None:
    held_out = [example(i, system="Be brief.") for i in range(28)]
    assert {e.id for e in choose(TRAIN, 4, seed=0, held_out=held_out)} == {"e28", "e29"}


def test_many_rows_of_many_groups_are_no_trouble() -> None:
    train = [example(i, group=f"group {i % 15_000}") for i in range(30_000)]
    began = time.perf_counter()
    assert len({e.group for e in choose(train, 8, seed=0, held_out=())}) == 8
    assert time.perf_counter() - began < 10  # looking every row up in a list took minutes


def test_equal_rows_are_shown_once() -> None:
    assert len(choose([TRAIN[0]] * 5, 4, seed=0, held_out=())) == 1


def test_examples_stand_between_the_system_message_and_the_request() -> None:
    request = Generate("item", (Message("system", "Answer."), Message("user", "q")), 8)
    shown = with_examples(request, [example(1, system="Other."), example(2)])
    assert isinstance(shown, Generate)
    assert [m.role for m in shown.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert shown.messages[0].content == "Answer."
    assert shown.messages[-1].content == "q"
    assert (shown.id, shown.max_new_tokens) == ("item", 8)


def words(request: Request) -> int:
    assert isinstance(request, Generate)
    return sum(len(m.content.split()) for m in request.messages) + request.max_new_tokens


@pytest.mark.parametrize(("context", "used"), [(None, 4), (100, 4), (26, 4), (25, 3), (14, 1), (13, 0), (5, 0)])
def test_as_many_examples_as_fit_with_the_longest_request_and_answer(context: int | None, used: int) -> None:
    requests = [Generate("a", (Message("user", "one"),), 8), Generate("b", (Message("user", "one two"),), 8)]
    shots = fitted(requests, TRAIN[:4], 4, context, words)
    assert len(shots.examples) == used
    assert (shots.reason is None) == (used == 4)


def test_too_few_examples_are_told() -> None:
    shots = fitted([Generate("a", (Message("user", "q"),), 8)], TRAIN[:2], 4, None, words)
    assert shots.reason is not None
    assert "only 2" in shots.reason


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.jsonl", "a.jsonl"),
        (["a.jsonl", "b.jsonl"], "a.jsonl"),
        ([{"path": "g.jsonl", "weight": 0.15}, {"path": "t.jsonl", "weight": 0.85}], "t.jsonl"),
        ([{"path": "g.jsonl", "fraction": 0.15}, "t.jsonl"], "t.jsonl"),
    ],
)
def test_examples_come_from_the_source_that_weighs_most(train: object, expected: str) -> None:
    config = DataConfig.model_validate_json(json.dumps({"train": train}))
    assert source_of_examples(config).path == expected


def test_examples_are_read_as_the_training_reads_them_and_only_what_answers_is_shown(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("question,answer,topic\nq1,a1,x\nq2,,x\nq3,a3,y\nhalf a row\n")
    columns = {"prompt": "question", "completion": "answer", "category": "topic"}
    source = {"path": str(table), "columns": columns}
    config = DataConfig.model_validate_json(json.dumps({"train": [source], "skip_bad": 1}))
    assert [(e.prompt, e.answer, e.group) for e in rows_to_show(config)] == [("q1", "a1", "x"), ("q3", "a3", "y")]
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "Once upon a time."}\n')
    assert rows_to_show(DataConfig(train=str(text))) == []


def test_real_rows(files: Path) -> None:
    train, held_out = read_examples(files / "examples.jsonl"), read_examples(files / "people.jsonl")
    assert {e.group for e in choose(train, 2, 0, held_out)} == {"vip", "plain"}
