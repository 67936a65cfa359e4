"""What is planted is in the data, and nothing else is; what was found is counted right."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.diagnosis_plants import PLANTS, write_run
from benchmarks.diagnosis_quality import judged
from benchmarks.forgetting_shape import claim, interval
from distributed_ft.config.load import load
from distributed_ft.evaluation.diagnosis.ranking import EFFECTS

SEEDS = range(3)


@pytest.mark.parametrize("plant", [name for name in PLANTS if name != "contamination"])
def test_held_out_questions_are_in_no_training_row_but_where_that_is_planted(plant: str) -> None:
    for seed in SEEDS:
        run = PLANTS[plant](seed)
        held_out = {question for question, _ in [*run.test, *run.validation]}
        assert len(held_out) == len(run.test) + len(run.validation)
        assert not held_out.intersection(question for question, _ in run.train)


def test_contaminated_rows_are_test_rows() -> None:
    run = PLANTS["contamination"](0)
    assert set(run.test) <= set(run.train)


def test_every_plant_is_a_kind_of_the_diagnosis_or_healthy() -> None:
    known = {*EFFECTS, *(effect for effects in EFFECTS.values() for effect in effects), "healthy"}
    assert set(PLANTS) <= known


@pytest.mark.parametrize("plant", PLANTS)
def test_each_plant_is_a_run_yaml_that_loads(tmp_path: Path, plant: str) -> None:
    for seed in SEEDS:
        path = write_run(tmp_path, f"{plant}-{seed}", plant, seed)
        assert load(path).config.name == f"{plant}-{seed}"
        assert "planted" not in json.loads(path.read_text())


def run(planted: str, *found: str) -> dict[str, Any]:
    return {"planted": planted, "found": [{"id": name} for name in found]}


def test_only_the_first_finding_counts_and_a_healthy_run_has_none() -> None:
    told = judged(
        [run("overfitting", "overfitting", "not_learned"), run("memorisation", "overfitting"), run("healthy")]
    )
    assert (told["planted_runs"], told["named_first"], told["healthy_accused"], told["passed"]) == (2, 1, 0, False)
    assert told["by_kind"] == {"overfitting": "1 of 1", "memorisation": "0 of 1"}
    assert not judged([run("overfitting", "overfitting"), run("healthy", "overfitting")])["passed"]
    assert judged([run("overfitting", "overfitting"), run("healthy")])["passed"]


def test_the_interval_is_students_and_a_claim_holds_when_it_excludes_zero() -> None:
    mean, low, high = interval([0.1, 0.2, 0.3])  # 4.303 * 0.1 / sqrt(3)
    assert (mean, low, high) == pytest.approx((0.2, -0.0484, 0.4484), abs=1e-4)
    assert claim("a > b", [0.20, 0.21, 0.22])["holds"] == "shown"
    assert claim("a > b", [-0.20, -0.21, -0.22])["holds"] == "refuted"
    assert claim("a > b", [0.1, 0.2, 0.3])["holds"] == "not shown"
