"""A rank that is killed or stopped is named, in one line, and all others are down within seconds."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Training, gone, kill, last_step, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import read_json

SECONDS = 15.0  # from the kill to the end of the command; python's own end, with torch loaded, is most of it


@pytest.mark.parametrize("launcher", ["dft", "torchrun"])
def test_a_killed_rank_is_named_with_its_last_step_and_ends_the_others(
    tmp_path: Path, bases: Callable[..., Path], launcher: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    changes = {"optim": {"max_steps": 200, "global_batch_size": 6}, "checkpoint": {"every": 1000}}
    with Training(write_run_yaml(tmp_path, bases("llama"), rows, **changes), 3, "--launcher", launcher) as training:
        assert training.until(training.reaches(3))
        progress = read_json(training.run.progress)
        assert (progress["phase"], progress["world_size"], progress["total_steps"]) == ("training", 3, 200)
        killed = time.monotonic()
        kill(training.ranks()[2], signal.SIGKILL)
        assert training.wait() == 1
        print(f"{launcher}: {time.monotonic() - killed:.1f} s from the kill to the end of the command")
        assert time.monotonic() - killed < SECONDS
        assert gone(training.run)
        told = [line for line in training.stderr.splitlines() if line.startswith("dft: ")]
        assert len(told) == 1, training.stderr
        named, _, again = told[0].partition("; continue with: ")
        step = int(named.removeprefix(f"dft: rank 2 on {os.uname().nodename} was ended by SIGKILL after step "))
        assert abs(step - last_step(training.run)) <= 1
        assert again.startswith(f"dft train {training.run.path} --nproc 3")
        assert "Traceback" not in training.stderr


@pytest.mark.parametrize("launcher", ["dft", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named_with_where_it_stood_and_all_are_ended(
    tmp_path: Path, bases: Callable[..., Path], launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFT_STALL_SECONDS", "5")
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    changes = {"optim": {"max_steps": 400}, "checkpoint": {"every": 1000}, "data": {"validation": None}}
    with Training(write_run_yaml(tmp_path, bases("llama"), rows, **changes), 2, "--launcher", launcher) as training:
        assert training.until(training.reaches(3))
        stopped = time.monotonic()
        kill(training.ranks()[1], signal.SIGSTOP)
        assert training.wait() == 1
        print(f"{launcher}: {time.monotonic() - stopped:.1f} s from the stop to the end of the command")
        assert 5 < time.monotonic() - stopped < 5 + SECONDS
        assert gone(training.run)
        told = training.stderr[training.stderr.index("dft: ") :]
        line, title, *stack = told.splitlines()
        named, _, again = line.partition("; continue with: ")
        begin, end = f"dft: rank 1 on {os.uname().nodename} was stopped by a signal after step ", ", and no rank here "
        step = int(named.removeprefix(begin).partition(end)[0])
        assert abs(step - last_step(training.run)) <= 1
        assert again.startswith(f"dft train {training.run.path} --nproc 2")
        assert title == "it stood at (innermost call first):"
        assert any("distributed_ft/train/fit.py" in frame for frame in stack)
        assert all(frame.startswith("  File ") for frame in stack)
