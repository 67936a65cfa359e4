"""Runs side by side: what differs, who is on the front, and what is not said."""

from pathlib import Path

import pytest
from support.report_runs import FORGETTING, HEALTHY, TICKET, Models, make_run, task_rows, write_scores

from distributed_ft.artifacts import read_json, step_name, write_json
from distributed_ft.evaluation.compare import as_json, compare, cost, differing, pareto_front, text

WORSE: Models = {"base": (0.02, 0.95), "few-shot": (0.31, None), step_name(300): (0.70, 0.95)}


def _renamed(path: Path, lr: float) -> Path:
    config = read_json(path / "config.json")
    config["name"], config["optim"]["lr"] = path.parent.name, lr
    write_json(path / "config.json", config)
    return path


def _with_world_size(path: Path) -> Path:
    lines = path / "metrics.jsonl"
    lines.write_text(lines.read_text().replace('"step_seconds"', '"world_size": 2, "step_seconds"'))
    return path


def test_runs_on_the_same_items_are_ranked_and_paired(tmp_path: Path) -> None:
    good = _with_world_size(_renamed(make_run(tmp_path / "good", HEALTHY).path, 1e-3))
    bad = _with_world_size(_renamed(make_run(tmp_path / "bad", WORSE).path, 1e-2))
    found = compare([bad, good])
    assert found.keys == ("optim.lr",)
    ((first, second),) = found.groups
    assert (first.name, first.step, first.is_best) == ("good", 300, True)
    assert first.versus_top is None
    assert second.versus_top is not None
    assert second.versus_top.mean == pytest.approx(-0.24)
    assert second.versus_top.high < 0
    assert (first.pareto, second.pareto) == (True, False)  # at the same cost
    assert first.cost.hours == pytest.approx(300 * 0.31 * 2 / 3600)
    assert first.gain_per_hour == pytest.approx(0.92 / (300 * 0.31 * 2 / 3600))
    shown = text(found)
    assert "0.940 ± 0.017" in shown
    assert "process-hours" in shown
    assert as_json(found)["groups"][0][0]["pareto"] is True


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", {})
    forgetful = make_run(tmp_path / "forgetful", FORGETTING)
    found = compare([run.path, forgetful.path])
    assert [group[0].task is None for group in found.groups] == [False, True]
    shown = text(found)
    assert "not evaluated" in shown
    assert "not recorded" in shown  # lines of an older version do not say how many processes there were


def test_runs_that_were_judged_by_other_items_stand_apart(tmp_path: Path) -> None:
    few = make_run(tmp_path / "few", HEALTHY, n=100)
    many = make_run(tmp_path / "many", HEALTHY, n=200)
    found = compare([few.path, many.path])
    assert [len(group) for group in found.groups] == [1, 1]
    assert "judged by other items or tasks" in text(found)


def _on_validation_rows(root: Path, score: float, n: int) -> Path:
    """A run whose checkpoint, over the budget, was never asked the test rows."""
    tasks = [{"name": "tickets", "path": "/data/test.jsonl", "metric": "json_fields", "validation": 0.5}]
    models: Models = {"base": (0.02, 0.95), step_name(300): (None, 0.1)}
    run = make_run(root, models, evaluation={"tasks": tasks})
    for model, of_model in (("base", 0.02), (step_name(300), score)):
        write_scores(run, model, "tickets.validation", "validation", task_rows(of_model, n, TICKET))
    return run.path


def test_runs_that_were_judged_on_validation_rows_are_paired_on_these(tmp_path: Path) -> None:
    runs = [_on_validation_rows(tmp_path / str(i), score, n) for i, (score, n) in enumerate([(0.5, 50), (0.3, 50)])]
    ((_, second),) = compare(runs).groups
    assert second.versus_top is not None
    assert second.versus_top.mean == pytest.approx(-0.2)
    others = _on_validation_rows(tmp_path / "others", 0.5, 40)
    assert [len(group) for group in compare([runs[0], others]).groups] == [1, 1]


def test_runs_of_one_name_are_told_apart_by_their_place(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder, HEALTHY) for folder in ("monday", "tuesday")]
    shown = text(compare([run.path for run in runs]))
    assert all(str(run.path) in shown for run in runs)


def test_each_step_costs_what_it_had_of_processes() -> None:
    lines = [
        {"step": 1, "loss": 1.0, "tokens": 10, "step_seconds": 3.0, "world_size": 4},
        {"step": 2, "loss": 1.0, "tokens": 10, "step_seconds": 4.0, "world_size": 3},
        {"step": 2, "val_loss": 1.0, "seconds": 9.0},
    ]
    assert cost(lines).hours == pytest.approx(24 / 3600)
    assert (
        cost([{**lines[0], "world_size": 1}, {"step": 2, "loss": 1.0, "tokens": 1, "step_seconds": 1.0}]).hours is None
    )


def test_the_front_has_no_run_that_another_beats() -> None:
    assert pareto_front([(0.9, 2.0), (0.8, 1.0), (0.7, 1.5), (0.9, 3.0), (1.0, None)]) == {0, 1}
    assert pareto_front([(0.5, 1.0), (0.5, 1.0)]) == {0, 1}


def test_keys_that_only_one_run_has_differ() -> None:
    assert differing([{"name": "a", "x": 1}, {"name": "b", "x": 1, "y": None}, {"x": 2}]) == ("x",)
