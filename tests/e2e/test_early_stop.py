"""`evaluation.early_stop`: the eval driver beside a training ends it when more steps do not help."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Training, curve, dft, kill, last_step, train_undisturbed, weights, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import read_json, write_atomic, write_json
from distributed_ft.config.load import resolved_json, with_evaluation

OTHER_TRAINING = {"schema": 1, "stop": True, "reason": "of another training", "step": 6, "best_step": 3}


def judged(folder: Path, early_stop: dict[str, Any] | None) -> dict[str, Any]:
    held_out = write_rows(folder / "held_out.jsonl", 12, seed=1)
    task = {"name": "letters", "path": str(held_out), "max_new_tokens": 8}
    return {"tasks": [task], "general": [], "few_shot": 0, "early_stop": early_stop}


def test_a_run_that_is_not_told_to_stop_is_the_same_run(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    plain = write_run_yaml(tmp_path, bases("llama"), rows, "plain", evaluation=judged(tmp_path, None))
    heeding = write_run_yaml(tmp_path, bases("llama"), rows, "heeding", evaluation=judged(tmp_path, {"patience": 1}))
    stale = tmp_path / "runs" / "heeding" / "evaluation" / "verdict.json"
    write_json(stale, OTHER_TRAINING)  # left by an earlier training: about checkpoints that this one has yet to make
    reference, run = train_undisturbed(plain), train_undisturbed(heeding)
    assert last_step(run) == 24
    assert curve(run) == curve(reference)
    assert weights(run) == weights(reference)
    assert not stale.exists()


@pytest.mark.slow  # three trainings, with a driver beside them
def test_the_driver_ends_a_training_that_does_not_get_better_and_it_can_be_continued(
    tmp_path: Path, bases: Callable[..., Path]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    changes: dict[str, Any] = {
        "optim": {"max_steps": 5000, "lr": 1e-9},  # nothing is learned
        "checkpoint": {"every": 5, "keep": 1000},
        "evaluation": judged(tmp_path, {"patience": 2}),
    }
    with Training(write_run_yaml(tmp_path, bases("llama"), rows, **changes)) as training:
        run = training.run
        assert training.until(lambda: (latest := run.pointer("LATEST")) is not None and latest.step >= 15)  # the third
        hold(training)  # while the driver starts, which takes longer than hundreds of these steps
        watching = [sys.executable, "-m", "launcher", "eval", str(run.path), "--watch"]
        driver = subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert training.until(lambda: run.stop_verdict.exists() and read_json(run.stop_verdict)["stop"])
            release(training)
            assert training.wait() == 0, training.stderr
            _, errors = driver.communicate(timeout=300)
        finally:
            driver.kill()
        assert driver.returncode == 0, errors
    verdict, progress, newest = read_json(run.stop_verdict), read_json(run.progress), run.newest_complete()
    assert newest is not None
    stopped = newest.step
    assert last_step(run) == stopped < 5000  # what was trained was saved
    assert (progress["phase"], progress["step"]) == ("finished", stopped)
    assert "task accuracy has not risen over 0.000 of step 5, inside the forgetting budget, for" in progress["reason"]
    assert f"ended early, after step {stopped} of 5000: {progress['reason']}" in training.stderr
    assert "more training does not help: task accuracy has not risen" in errors
    assert verdict["stop"] is True
    assert verdict["best_step"] == 5
    status = dft("status", str(run.path), cwd=tmp_path)
    assert re.search(rf"ended early +{re.escape(progress['reason'])}", status.stdout)

    again = dft("train", str(run.path), "--nproc", "2", cwd=tmp_path)  # a finished run stays finished
    assert again.returncode == 0, again.stderr
    assert f"ended early, after step {stopped} of 5000" in again.stderr
    assert last_step(run) == stopped
    write_atomic(run.config, resolved_json(with_evaluation(run.config, ["evaluation.early_stop=null"])))  # as dft eval
    with Training(tmp_path / "run.yaml", run=run.path) as training:
        assert training.until(training.reaches(stopped + 3))
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75


def hold(training: Training) -> None:
    for pid in training.ranks().values():
        kill(pid, signal.SIGSTOP)


def release(training: Training) -> None:
    for pid in training.ranks().values():
        kill(pid, signal.SIGCONT)


def test_an_early_stop_without_a_task_is_refused(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    path = write_run_yaml(tmp_path, bases("llama"), rows, evaluation={"early_stop": {}, "general": []})
    refused = dft("check", str(path), cwd=tmp_path)
    assert refused.returncode == 2
    assert "evaluation.early_stop: goes by the accuracy on evaluation.tasks, and there are none" in refused.stderr
