"""Runs that cannot go on: one clear message, exit code 2, and what was there before is kept."""

import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Training, curve, gone, kill, last_step, train, train_undisturbed, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import RunDirectory, read_json_lines


@pytest.fixture
def make_yaml(tmp_path: Path, bases: Callable[..., Path]) -> Callable[..., Path]:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    return lambda **sections: write_run_yaml(tmp_path, bases("llama"), rows, **sections)


def one_message(stderr: str) -> str:
    """The error, of which there is one; no traceback, no noise of libraries about it."""
    errors = [line for line in stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, stderr
    assert errors[0].startswith("dft: error: ")
    assert "Traceback" not in stderr
    return errors[0]


def test_a_run_that_diverges_stops_after_five_skipped_steps_with_a_diagnosis(make_yaml: Callable[..., Path]) -> None:
    run_yaml = make_yaml(optim={"lr": 1e30, "max_grad_norm": None, "max_steps": 40}, strategy={"type": "fsdp"})
    code, stderr = train(run_yaml)
    message = one_message(stderr)
    assert code == 2
    assert "was not finite for 5 steps in a row" in message
    assert "optim.lr is 1e+30" in message
    run = RunDirectory(run_yaml.parent / "runs" / "run")
    steps = [line for line in read_json_lines(run.metrics) if "loss" in line]
    assert [line.get("skipped", False) for line in steps[-6:]] == [False] + 5 * [True]
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert gone(run)


def with_file_limit(limit: int | None, run_yaml: Path) -> tuple[int, str]:
    """Train where no file can grow beyond `limit` bytes: the kernel refuses the write as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # inherited by what is started
        return train(run_yaml)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_of(run: RunDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}


def test_a_full_disk_during_a_save_keeps_the_checkpoint_before_and_the_run_goes_on_when_there_is_room(
    make_yaml: Callable[..., Path],
) -> None:
    changes: dict[str, Any] = {"method": {"rank": 32}, "checkpoint": {"every": 8}, "strategy": {"type": "fsdp"}}
    run_yaml = make_yaml(optim={"max_steps": 200}, **changes)
    with Training(run_yaml) as training:
        assert training.until(training.reaches(9))
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75, training.stderr
    run = training.run
    before, newest = files_of(run), run.newest_complete()
    assert newest is not None
    adapter = (newest.model / "adapter_model.safetensors").stat().st_size
    shard = max(path.stat().st_size for path in (newest.state / "shards").glob("*.distcp"))
    assert adapter + 30_000 < shard, "so that one limit stops the model, and another the shards"
    for limit in (adapter - 30_000, (adapter + shard) // 2):
        code, stderr = with_file_limit(limit, run_yaml)
        message = one_message(stderr)
        assert code == 2
        assert f"continue with: dft train {run.path}" in message
        assert "File too large" in message
        assert files_of(run) == before, "nothing of the failed save is left, and nothing before it was touched"
        assert last_step(run) > newest.step
    with Training(run_yaml) as training:
        assert training.until(training.reaches(newest.step + 9))
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75, training.stderr
    steps = [line["step"] for line in curve(run) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_damaged_checkpoints_are_passed_over_and_a_run_with_none_left_is_refused(
    make_yaml: Callable[..., Path],
) -> None:
    run_yaml = make_yaml(optim={"max_steps": 12}, checkpoint={"every": 4})
    run = train_undisturbed(run_yaml)
    expected, losses = files_of(run), curve(run)
    newest = run.newest_complete()
    assert newest is not None
    file = newest.state / "train.json"
    file.write_bytes(file.read_bytes().replace(b"12", b"99"))  # the same size, another content
    code, stderr = train(run_yaml)
    assert code == 0, stderr
    assert curve(run) == losses, "trained again from step 8"
    assert newest.verify() is None
    assert (newest.model / "adapter_model.safetensors").read_bytes() == expected[
        newest.model / "adapter_model.safetensors"
    ]

    for checkpoint in run.all_checkpoints():
        (checkpoint.model / "adapter_model.safetensors").unlink()
    before = files_of(run)
    code, stderr = train(run_yaml)
    assert code == 2
    assert "all 3 checkpoints are damaged" in stderr
    assert "delete the run directory to start over" in stderr
    assert "Traceback" not in stderr
    assert files_of(run) == before
    assert curve(run) == losses
