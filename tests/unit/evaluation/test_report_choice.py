"""What the report says of how the checkpoint and the prompt were chosen."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.report_runs import HEALTHY, make_run, read, task_rows, write_scores

from distributed_ft.artifacts import RunDirectory, read_json, step_name, write_json
from distributed_ft.evaluation.report import write as report
from distributed_ft.evaluation.report.collect import collect

TASK = {"name": "tickets", "path": "/data/test.jsonl", "metric": "json_fields", "validation": 0.4}
ON_VALIDATION = {"base": 0.05, "few-shot": 0.3, step_name(100): 0.6, step_name(200): 0.9, step_name(300): 0.98}
TRIED = [{"k": k, "score": score, "stderr": 0.04, "n": 120} for k, score in ((1, 0.2), (2, 0.26), (4, 0.3))]
ONLY = "chosen on validation rows; the test rows of tickets were asked of base, few-shot and step 300 only"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """All models on 120 validation rows; base, few-shot and step 300 on 200 test rows."""
    models = {
        name: (None if name in (step_name(100), step_name(200)) else task, g) for name, (task, g) in HEALTHY.items()
    }
    run = make_run(tmp_path, models, evaluation={"tasks": [TASK], "few_shot": "auto"})
    for name, rate in ON_VALIDATION.items():
        write_scores(run, name, "tickets.validation", "validation", task_rows(rate, 120, "Validation {}"))
    say(run, how_chosen=ONLY)
    return run


def say(run: RunDirectory, **selection: Any) -> None:
    summary = read_json(run.evaluation / "summary.json")
    prompt = {"requested": 8, "used": 4, "reason": None, "tried": TRIED}
    write_json(
        run.evaluation / "summary.json",
        {**summary, "selection": {**summary["selection"], **selection}, "few_shot": {"tickets": prompt}},
    )


def test_checkpoints_are_told_apart_on_validation_rows_and_the_verdict_is_on_test_rows(run: RunDirectory) -> None:
    report.write(run.path)
    found = read(run)
    assert [row["task"]["score"] for row in found["checkpoints"]] == pytest.approx([0.6, 0.9, 118 / 120], abs=0.01)
    assert {row["task"]["n"] for row in found["checkpoints"]} == {120}
    assert found["task"]["tuned"] == {**found["task"]["tuned"], "score": 0.94, "n": 200}
    assert found["task"]["base"]["n"] == found["task"]["versus_base"]["n"] == 200
    assert found["choosing"]["base"]["score"] == pytest.approx(0.05)
    assert found["verdict"] == "ship"
    assert found["headline"].startswith("Step 300 scores 94% on tickets (base 2%, few-shot 31%)")
    assert {"holds": True, "text": f"C{ONLY[1:]}."} in found["reasons"]
    for suffix in ("md", "html"):
        text = run.path.joinpath(f"report.{suffix}").read_text()
        assert f"C{ONLY[1:]}." in text
        assert "validation rows (tickets.validation, 120 items), by which the best is chosen" in text
        tried = "tickets: 4 in the few-shot prompt, the best on 120 validation rows of 1 (20.0%), 2 (26.0%), 4 (30.0%)"
        assert tried in text


def test_the_samples_are_those_of_the_test_rows(run: RunDirectory) -> None:
    found = collect(run.path)
    assert {sample.task for group in found.samples if group.kind != "forgotten" for sample in group.shown} == {
        "tickets"
    }


def test_before_the_test_rows_are_asked_all_is_on_validation_rows_and_the_report_says_so(run: RunDirectory) -> None:
    for file in run.results(step_name(300), "tickets").iterdir():
        file.unlink()
    report.write(run.path)
    found = read(run)
    assert found["task"]["name"] == "tickets.validation"
    assert found["task"]["base"]["n"] == 120
    assert [m["what"] for m in found["missing"]] == [
        "The score of step 300 on the test rows: these are its validation rows"
    ]


def test_scores_of_validation_rows_that_the_settings_no_longer_have_are_passed_over(run: RunDirectory) -> None:
    config = json.loads(run.config.read_text())
    config["evaluation"]["tasks"][0]["validation"] = None
    run.config.write_text(json.dumps(config))
    found = collect(run.path)
    assert found.choosing is None
    assert [row.task.n if row.task else None for row in found.checkpoints] == [None, None, 200]


def test_a_checkpoint_that_was_chosen_on_its_own_rows_is_said_to_be_optimistic(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    told = "the best of 3 checkpoints was chosen on the same rows of tickets that it is judged by"
    say(run, how_chosen=told)
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "ship"
    assert {"holds": None, "text": f"T{told[1:]}."} in found["reasons"]
    assert found["choosing"] is None
