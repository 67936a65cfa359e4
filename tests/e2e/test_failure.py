"""A rank that is killed is named, in one line, and all others are down within seconds."""

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
        assert time.monotonic() - killed < SECONDS
        assert gone(training.run)
        told = [line for line in training.stderr.splitlines() if line.startswith("dft: ")]
        assert len(told) == 1, training.stderr
        named, _, again = told[0].partition("; continue with: ")
        step = int(named.removeprefix(f"dft: rank 2 on {os.uname().nodename} was ended by SIGKILL after step "))
        assert abs(step - last_step(training.run)) <= 1
        assert again.startswith(f"dft train {training.run.path} --nproc 3")
        assert "Traceback" not in training.stderr
