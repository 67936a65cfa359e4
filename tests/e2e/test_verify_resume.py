"""`dft verify-resume` says "identical" of what is, and finds what is not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import train_undisturbed, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import Checkpoint, RunDirectory
from launcher import sameness


@pytest.fixture(scope="module")
def make_yaml(tmp_path_factory: pytest.TempPathFactory, bases: Callable[..., Path]) -> Callable[..., Path]:
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 40)

    def make(**sections: object) -> Path:
        return write_run_yaml(tmp_path_factory.mktemp("verify"), bases("qwen3"), rows, **sections)  # type: ignore[arg-type]

    return make


def _verify(run_yaml: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "verify-resume", str(run_yaml), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=run_yaml.parent, env=environment, capture_output=True, text=True, timeout=450)


@pytest.mark.slow  # the guide that test_documents runs has this command too
def test_a_killed_and_resumed_run_is_called_identical_and_nothing_is_left(make_yaml: Callable[..., Path]) -> None:
    run_yaml = make_yaml(optim={"max_steps": 400})
    done = _verify(run_yaml, "--steps", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed (SIGKILL) after step" in done.stdout
    assert "identical: steps 1 to 20" in done.stdout
    assert "the schedule of 400 steps" in done.stdout
    assert [p.name for p in (run_yaml.parent / "runs").iterdir()] == [".cache"]


def test_what_cannot_be_verified_is_said_before_anything_is_trained(make_yaml: Callable[..., Path]) -> None:
    run_yaml = make_yaml()
    too_many = _verify(run_yaml, "--steps", "25")
    assert (too_many.returncode, "--steps: 25: the run has 24 steps" in too_many.stderr) == (2, True)
    noise = _verify(run_yaml, "--resume-nproc", "2")
    assert (noise.returncode, "method.dropout: 0.1: every process draws" in noise.stderr) == (2, True)


def test_two_runs_that_differ_are_found_with_the_first_step_and_tensor(make_yaml: Callable[..., Path]) -> None:
    few = {"max_steps": 3}
    a, b, again = (train_undisturbed(make_yaml(optim={**few, "lr": lr}), 1) for lr in (5e-3, 6e-3, 5e-3))
    assert sameness.metrics_differ(a, again, range(1, 4)) is None
    found = sameness.metrics_differ(a, b, range(1, 4))
    assert found is not None
    assert (found.step, found.what) == (1, "lr")
    first, second, same = (_checkpoint(run) for run in (a, b, again))
    weights, _ = sameness.model_differs(first, second)
    assert weights is not None
    assert str(weights).startswith("step 3: model/base_model.")
    assert "numbers differ, by" in weights.how
    state, _ = sameness.state_differs(first, second)
    assert state is not None
    assert sameness.model_differs(first, same)[0] is None
    nothing, compared = sameness.state_differs(first, same)
    assert nothing is None
    assert compared > 20
    assert sameness.largest_difference(a, again, range(1, 4), "loss")[0] == 0.0
    missing = sameness.metrics_differ(a, again, [9])
    assert missing is not None
    assert "no such step" in missing.how


def _checkpoint(run: RunDirectory) -> Checkpoint:
    newest = run.newest_complete()
    assert newest is not None
    return newest
