"""Rows to choose by, apart from those that what was chosen is judged by."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.config.schema import EvaluationConfig
from distributed_ft.data.examples import Example, Message
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.evaluation import driver
from distributed_ft.evaluation.__main__ import main
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.report.collect import collect
from distributed_ft.evaluation.significance import holm
from distributed_ft.evaluation.tasks import build_tasks
from distributed_ft.evaluation.tasks.validation import split

MakeRun = Callable[..., RunDirectory]
STEPS = ("step-00000010", "step-00000020", "step-00000030")


def example(number: int, asked: str | None = None) -> Example:
    turns = (Message("user", asked or f"question {number}"), Message("assistant", f"answer {number}"))
    return Example(f"e{number}", turns, number, "rows.jsonl", None)


def write(path: Path, pairs: list[tuple[str, str]]) -> str:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def tasks(**task: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"tasks": ({"name": "t", **task},), "general": ()})


# --- which rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_a_fraction_of_the_rows_is_taken_by_content_and_no_row_is_lost(fraction: float) -> None:
    rows = [example(i) for i in range(40)]
    test, validation = split("t", rows, fraction)
    assert len(validation) == 40 * fraction
    assert sorted([*test, *validation], key=lambda e: e.line) == rows
    again, by = split("t", rows[::-1], fraction)
    assert (again, by) == (test[::-1], validation[::-1])


def test_rows_that_ask_the_same_stay_together_unless_all_do() -> None:
    rows = [example(i, asked=f"question {i // 4}") for i in range(40)]
    test, validation = split("t", rows, 0.25)
    assert not {e.prompt for e in test} & {e.prompt for e in validation}
    assert len(validation) == 12  # as many as were wanted, and the rest of the last question
    jokes = [example(i, asked="Tell me a joke.") for i in range(40)]
    assert len(split("t", jokes, 0.25)[1]) == 10


@pytest.mark.parametrize(("rows", "fraction", "left"), [(20, 0.01, "validation"), (1, 0.9, "test"), (2, 0.9, "test")])
def test_a_fraction_that_leaves_no_row_is_refused(rows: int, fraction: float, left: str) -> None:
    says = rf"rows\.jsonl: evaluation\.tasks\[t\]\.validation: {fraction:g} of {rows} rows leaves no {left} row"
    with pytest.raises(DataError, match=says):
        split("t", [example(i) for i in range(rows)], fraction)


@pytest.mark.parametrize("answer", ["1", "one"])
def test_a_validation_row_that_asks_what_a_test_row_asks_is_refused(tmp_path: Path, answer: str) -> None:
    test = write(tmp_path / "test.jsonl", [("a?", "0"), ("b?", "1"), ("c?", "2")])
    by = write(tmp_path / "by.jsonl", [("d?", "3"), ("b?", answer), ("c?", "2")])
    with pytest.raises(
        DataError, match=r"by\.jsonl:2: .* asks what the test row .*test\.jsonl:2 asks, and so do 1 more;"
    ):
        build_tasks(tasks(path=test, validation=by))
    with pytest.raises(DataError, match="asks what the test row"):
        build_tasks(tasks(path=test, validation=test))


def test_an_invitation_is_no_question_and_only_equal_rows_are_refused(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [("A joke!", "one"), ("A joke!", "two")])
    build_tasks(tasks(path=test, validation=write(tmp_path / "by.jsonl", [("A joke!", "three")])))
    with pytest.raises(DataError, match=r"test\.jsonl:2 asks"):
        build_tasks(tasks(path=test, validation=write(tmp_path / "by.jsonl", [("A joke!", "two")])))


def test_validation_rows_are_a_task_of_their_own_beside_it(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [(f"{i}?", str(i)) for i in range(8)])
    by = write(tmp_path / "by.jsonl", [("x?", "y")])
    found = build_tasks(tasks(path=test, validation=by))
    assert [(task.name, task.kind, len(task.examples())) for task in found] == [
        ("t", "task", 8),
        ("t.validation", "validation", 1),
    ]
    plain, half = build_tasks(tasks(path=test))[0], build_tasks(tasks(path=test, validation=0.5))
    assert found[0].digest == plain.digest  # a score without validation rows is still its score
    assert len({task.digest for task in (plain, *half)}) == 3
    both = EvaluationConfig.model_validate(
        {"tasks": ({"name": "t", "path": test, "validation": by}, {"name": "t.validation", "path": by}), "general": ()}
    )
    with pytest.raises(ConfigError, match=r"two tasks are named 't\.validation'"):
        build_tasks(both)


# --- choosing by them ----------------------------------------------------------------------------------------------


def people(files: Path, **more: Any) -> list[dict[str, Any]]:
    task = {"name": "people", "path": str(files / "people.jsonl"), "metric": "json_fields", "max_new_tokens": 24}
    return [{**task, "validation": 0.5, **more}]


def asked(run: RunDirectory) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for result in run.task_results():
        found.setdefault(result.model, set()).add(result.task)
    return found


def summary(run: RunDirectory) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.evaluation / "summary.json").read_text())
    return loaded


@pytest.fixture
def run(make_run: MakeRun, adapters: dict[str, Path], files: Path) -> RunDirectory:
    models = {10: adapters["untrained"], 20: adapters["kept"], 30: adapters["kept"]}
    return make_run(models, tasks=people(files))


def test_all_are_scored_on_validation_rows_and_only_the_chosen_one_on_test_rows(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run.path)
    both = {"people", "people.validation"}
    assert asked(run) == {
        "base": {*both, "skills"},
        "few-shot": both,
        STEPS[0]: {"people.validation", "skills"},
        STEPS[1]: {*both, "skills"},
        STEPS[2]: {"people.validation", "skills"},
    }
    rows = {task: {s.id for s in run.samples("base", task)} for task in both}
    assert {len(ids) for ids in rows.values()} == {3}
    assert not set.intersection(*rows.values())
    found = summary(run)
    chosen = found["selection"]
    assert run.best_file.read_text() == f"{STEPS[1]}\n"
    assert chosen["chosen_on"] == {"people": "people.validation"}
    assert chosen["judged_on_test"] == [STEPS[1]]
    assert [c["task_accuracy"] for c in chosen["candidates"]] == [0, 1, 1]
    assert set(found["paired"][STEPS[1]]) == both
    assert set(found["paired"][STEPS[0]]) == {"people.validation"}
    told = capsys.readouterr().out
    only = "chosen on validation rows; the test rows of people were asked of base, few-shot and step 20 only"
    assert chosen["how_chosen"] == only
    assert only in told
    assert "people.validation" in told.splitlines()[0]
    before = {p: p.stat().st_mtime_ns for p in run.evaluation.glob("*/*/*")}
    evaluate(run.path)
    assert {p: p.stat().st_mtime_ns for p in run.evaluation.glob("*/*/*")} == before
    assert summary(run) == found


def test_that_another_was_judged_on_the_test_rows_before_is_told(run: RunDirectory) -> None:
    evaluate(run.path, "30")
    assert run.best_file.read_text() == f"{STEPS[2]}\n"
    evaluate(run.path)
    chosen = summary(run)["selection"]
    assert chosen["best_step"] == 20
    assert chosen["judged_on_test"] == [STEPS[1], STEPS[2]]
    assert "base, few-shot and steps 20, 30, which were chosen in turn" in chosen["how_chosen"]


def test_one_that_is_removed_before_its_test_rows_are_asked_leaves_its_place(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_remove(path: Path, value: Any) -> None:
        write_json(path, value)
        shutil.rmtree(run.checkpoints / STEPS[1], ignore_errors=True)

    monkeypatch.setattr(driver, "write_json", write_and_remove)
    evaluate(run.path)
    assert run.best_file.read_text() == f"{STEPS[2]}\n"
    assert summary(run)["selection"]["judged_on_test"] == [STEPS[2]]


def test_the_test_rows_wait_for_the_end_of_the_training(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = {"schema": 1, "phase": "training", "step": 30, "total_steps": 40, "world_size": 1, "updated": "now"}
    write_json(run.progress, progress)
    seen = []

    def sleep(_: float) -> None:
        seen.append(asked(run))
        write_json(run.progress, {**progress, "phase": "finished", "step": 40})

    monkeypatch.setattr("distributed_ft.evaluation.watch.time.sleep", sleep)
    assert main([str(run.path), "--watch"]) == 0
    assert all(seen[-1][step] == {"people.validation", "skills"} for step in STEPS)
    assert "people" in asked(run)[STEPS[1]]
    assert summary(run)["selection"]["judged_on_test"] == [STEPS[1]]


def test_without_validation_rows_the_score_of_the_chosen_one_is_called_optimistic(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(make_run({10: adapters["untrained"], 20: adapters["kept"]}).path)
    told = capsys.readouterr().out
    assert "the best of 2 checkpoints was chosen on the same rows of people that it is judged by" in told


def test_a_single_checkpoint_was_not_chosen(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({20: adapters["kept"]})
    evaluate(run.path)
    assert summary(run)["selection"]["how_chosen"] is None


def test_the_number_of_examples_is_chosen_on_validation_rows(
    make_run: MakeRun, adapters: dict[str, Path], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({20: adapters["kept"]}, tasks=people(files), few_shot="auto")
    evaluate(run.path)
    found = asked(run)
    assert {model for model in found if model.startswith("few-shot")} == {
        "few-shot", "few-shot-1", "few-shot-2", "few-shot-4",
    }  # fmt: skip
    assert found["few-shot"] == {"people", "people.validation"}
    assert found["few-shot-4"] == {"people.validation"}
    prompt = summary(run)["few_shot"]["people"]
    assert [(each["k"], each["n"]) for each in prompt["tried"]] == [(1, 3), (2, 3), (4, 3)]
    scores = {each["k"]: each["score"] for each in prompt["tried"]}
    assert prompt["used"] == min(k for k in scores if scores[k] == max(scores.values()))
    assert prompt["requested"] == 8
    assert "has only 4" in prompt["reason"]
    best = f"few-shot-{prompt['used']}"
    assert run.samples("few-shot", "people.validation") == run.samples(best, "people.validation")
    assert len(run.samples("few-shot", "people")[0].request) == 1 + 2 * prompt["used"]
    told = capsys.readouterr().out
    assert f"people: {prompt['used']} examples in the few-shot prompt, chosen on 3 validation rows among 1 (" in told
    before = {p: p.stat().st_mtime_ns for p in run.evaluation.glob("*/*/*")}
    evaluate(run.path)
    assert {p: p.stat().st_mtime_ns for p in run.evaluation.glob("*/*/*")} == before


@pytest.fixture
def two_tasks(make_run: MakeRun, adapters: dict[str, Path], files: Path) -> RunDirectory:
    """One with validation rows, one without."""
    other = {"name": "practice", "path": str(files / "practice.jsonl"), "max_new_tokens": 24}
    models = {10: adapters["untrained"], 20: adapters["kept"]}
    return make_run(models, tasks=[*people(files), other], few_shot=0, general=[])


def test_a_task_without_validation_rows_is_chosen_on_its_test_rows_beside_one_with_them(
    two_tasks: RunDirectory,
) -> None:
    run = two_tasks
    evaluate(run.path)
    chosen = summary(run)["selection"]
    assert chosen["chosen_on"] == {"people": "people.validation", "practice": "practice"}
    assert asked(run)[STEPS[0]] == {"people.validation", "practice"}
    scores = [run.samples(STEPS[1], task) for task in ("people.validation", "practice")]
    means = [sum(s.score for s in samples) / len(samples) for samples in scores]
    assert chosen["candidates"][1]["task_accuracy"] == pytest.approx(sum(means) / 2)
    assert chosen["how_chosen"] == (
        "chosen on validation rows; the test rows of people were asked of base and step 20 only; the best of 2 "
        "checkpoints was chosen on the same rows of practice that it is judged by, so its score there is optimistic; "
        "validation rows (evaluation.tasks[].validation) keep the two apart"
    )


def test_p_values_are_adjusted_for_the_rows_that_a_model_is_judged_on_as_in_the_report(
    two_tasks: RunDirectory,
) -> None:
    run = two_tasks
    evaluate(run.path)
    paired = summary(run)["paired"]
    families = {STEPS[0]: ["people.validation", "practice"], STEPS[1]: ["people", "practice"]}
    for step, family in families.items():
        found = {task: paired[step][task]["vs_base"] for task in family}
        adjusted = holm([found[task]["p"] for task in family])
        assert [found[task]["p_holm"] for task in family] == adjusted
    alone = paired[STEPS[1]]["people.validation"]["vs_base"]
    assert alone["p_holm"] == alone["p"]
    judged = collect(run.path).tasks
    assert [t.name for t in judged] == families[STEPS[1]]
    differences = [t.versus_base for t in judged]
    assert [d.p_holm for d in differences if d] == [paired[STEPS[1]][t.name]["vs_base"]["p_holm"] for t in judged]
