"""`dft eval RUN --watch` beside a real training."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Training, curve, kill, processes_of, train_undisturbed, weights, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import RunDirectory
from launcher.cli import main


def start(run: RunDirectory) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launcher", "eval", str(run.path), "--watch"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_side_car_scores_what_a_live_training_removes_and_changes_nothing_in_it(
    tmp_path: Path, bases: Callable[..., Path]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    held_out = write_rows(tmp_path / "held_out.jsonl", 12, seed=1)
    changes = {  # some seconds between two checkpoints
        "optim": {"global_batch_size": 96, "max_steps": 120},
        "checkpoint": {"every": 40, "keep": 1},
        "evaluation": {
            "tasks": [{"name": "letters", "path": str(held_out), "max_new_tokens": 8}],
            "general": [],
            "few_shot": 1,
            "batch_size": 4,
        },
    }
    reference = train_undisturbed(write_run_yaml(tmp_path, bases("llama"), rows, "undisturbed", **changes), 1)
    early = subprocess.run(
        [sys.executable, "-m", "launcher", "eval", str(tmp_path / "runs" / "run"), "--watch"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert early.returncode == 2
    assert "no such run directory" in early.stderr

    with Training(write_run_yaml(tmp_path, bases("llama"), rows, **changes), 1) as training:
        assert training.until(training.run.config.exists)
        first = start(training.run)
        assert training.until(lambda: training.run.checkpoints.exists() and training.run.all_checkpoints())
        (rank,) = training.ranks().values()
        kill(rank, signal.SIGSTOP)  # while no driver is there, a checkpoint that is removed is not scored
        first.terminate()  # pre-empted
        said = first.communicate(timeout=150)
        assert first.returncode == 75, said
        lock = training.run.evaluation / ".lock"
        former = lock.read_text()
        second = start(training.run)
        assert training.until(lambda: lock.read_text() not in ("", former))
        kill(rank, signal.SIGCONT)
        code = training.wait()
        assert code == 0, training.stderr
        out, errors = second.communicate(timeout=300)
        assert second.returncode == 0, errors
    run = training.run
    scored = {result.model for result in run.task_results()}
    assert scored == {"base", "few-shot", *(f"step-{step:08d}" for step in (40, 80, 120))}
    assert curve(run) == curve(reference)
    assert weights(run) == weights(reference)
    assert f"BEST: step {int(run.best_file.read_text().strip().removeprefix('step-'))}" in out
    assert list(run.tensorboard.glob("*.evaluation"))
    for pid in processes_of(run):
        kill(pid, 9)
        raise AssertionError("a process outlived the run")


def test_what_cannot_be_followed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tmp_path), "--watch", "--checkpoints", "latest"]) == 2
    assert "--watch: scores every checkpoint" in capfd.readouterr().err
    assert main(["eval", str(tmp_path), "--train-job", "7"]) == 2
    assert "--train-job needs it" in capfd.readouterr().err
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["eval", str(tmp_path / "later"), "--watch", "--train-job", "7"]) == 2
    assert "job 7: there is no Slurm on this machine" in capfd.readouterr().err
    assert not (tmp_path / "later").exists()
