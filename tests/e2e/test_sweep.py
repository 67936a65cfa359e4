"""`dft sweep`: nothing starts unless all can, a run that fails stops no other, and what is done stays done."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import RunDirectory, read_json
from distributed_ft.records import Sweep


@pytest.fixture
def run_yaml(tmp_path: Path, bases: Callable[..., Path]) -> Path:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    return write_run_yaml(tmp_path, bases("qwen3"), rows, optim={"max_steps": 3})


def _sweep(run_yaml: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "sweep", str(run_yaml), *arguments]
    return subprocess.run(command, cwd=run_yaml.parent, capture_output=True, text=True, timeout=450)


def test_a_combination_that_cannot_work_is_named_before_any_run_starts(run_yaml: Path) -> None:
    done = _sweep(run_yaml, "method.rank=2,0,-1")
    assert done.returncode == 2
    assert "run-rank0: method.rank: 0" in done.stderr
    assert "run-rank-1: method.rank: -1" in done.stderr
    assert not (run_yaml.parent / "runs").exists()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_the_same_command_does_what_is_missing(run_yaml: Path) -> None:
    runs = run_yaml.parent / "runs"
    taken = RunDirectory(runs / "run-rank2")
    taken.path.mkdir(parents=True)
    with taken.lock():
        first = _sweep(run_yaml, "method.rank=2,4")
    assert first.returncode == 2, first.stdout + first.stderr
    assert "another training is running there" in first.stderr
    assert "FAILED (exit code 2): run-rank2; the others go on" in first.stdout
    assert "1 of 2 runs are done" in first.stdout

    again = _sweep(run_yaml, "method.rank=2,4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 runs are done" in again.stdout
    assert "sweep 2/2: run-rank4\nfinished before: skipped" in again.stdout
    record = Sweep(**read_json(runs / "run.sweep.json"))
    assert [(run.name, run.overrides) for run in record.runs] == [
        ("run-rank2", ("method.rank=2", "name=run-rank2")),
        ("run-rank4", ("method.rank=4", "name=run-rank4")),
    ]
    for run in record.runs:
        newest = RunDirectory(run.run_dir).newest_complete()
        assert newest is not None
        assert newest.step == 3
