"""Being asked to stop: all ranks save at the next step boundary, say how to go on, and the run goes on as if nothing
had happened."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Training, curve, gone, kill, last_step, train, train_undisturbed, weights, write_run_yaml
from support.tiny import write_rows

from distributed_ft.artifacts import RunDirectory, read_json


@pytest.fixture
def run_yaml(tmp_path: Path, bases: Callable[..., Path]) -> Path:
    """60 steps without a checkpoint of their own accord before the last."""
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    changes = {"optim": {"max_steps": 60}, "checkpoint": {"every": 1000}, "strategy": {"type": "fsdp"}}
    return write_run_yaml(tmp_path, bases("qwen3"), rows, **changes)


def assert_saved(training: Training) -> None:
    """Exit code 75, with the last finished step as the newest checkpoint, and the command that goes on."""
    assert training.wait() == 75, training.stderr
    assert f"saved; continue with: dft train {training.run.path} --nproc 2\n" in training.stderr
    assert "Traceback" not in training.stderr
    newest = training.run.newest_complete()
    assert newest is not None
    assert newest.step == last_step(training.run) < 60
    assert gone(training.run), "a process outlived the run"


def test_stops_by_ctrl_c_by_sigterm_and_by_one_rank_alone_resume_to_the_undisturbed_run(run_yaml: Path) -> None:
    reference = train_undisturbed(write_run_yaml_like(run_yaml, "undisturbed"))

    with Training(run_yaml) as training:
        assert training.until(training.reaches(3))
        assert_another_is_refused(training, run_yaml)
        kill(training.process.pid, signal.SIGINT)
        assert_saved(training)
    with Training(run_yaml) as training:
        assert training.until(training.reaches(last_step(training.run) + 2))
        kill(training.process.pid, signal.SIGTERM)
        assert_saved(training)
    with Training(run_yaml, run=training.run.path) as training:  # `dft train RUN_DIR` goes on too
        assert training.until(training.reaches(last_step(training.run) + 2))
        kill(training.ranks()[1], signal.SIGTERM)
        assert_saved(training)

    code, stderr = train(run_yaml)
    assert code == 0, stderr
    assert curve(training.run) == curve(reference)
    assert weights(training.run) == weights(reference)


def write_run_yaml_like(run_yaml: Path, name: str) -> Path:
    other = run_yaml.with_name(f"{name}.yaml")
    other.write_text(run_yaml.read_text().replace('"name": "run"', f'"name": "{name}"'))
    return other


def assert_another_is_refused(training: Training, run_yaml: Path) -> None:
    """The ranks hold still meanwhile, so that the run is certainly there."""
    ranks = training.ranks().values()
    for pid in ranks:
        kill(pid, signal.SIGSTOP)
    before = curve(training.run)
    again = run_yaml.with_name("again.yaml")
    again.write_text(run_yaml.read_text())
    with Training(again, run=training.run.path) as other:
        code = other.process.wait(120)
        assert code == 2, other.stderr
        assert f"another training is running there (process {training.process.pid} on " in other.stderr
        other.ranks = dict  # type: ignore[method-assign]  # they are the first one's
    alone = [sys.executable, "-m", "distributed_ft.train", str(training.run.path)]  # as torchrun or srun start it
    done = subprocess.run(alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "another training is running there" in done.stderr
    assert curve(training.run) == before
    for pid in ranks:
        kill(pid, signal.SIGCONT)


def test_a_second_signal_ends_the_run_at_once_even_when_a_rank_hangs(run_yaml: Path) -> None:
    with Training(run_yaml) as training:
        assert training.until(training.reaches(2))
        kill(training.ranks()[1], signal.SIGSTOP)
        kill(training.process.pid, signal.SIGTERM)
        with pytest.raises(Exception, match="timed out"):
            training.process.wait(2)
        kill(training.process.pid, signal.SIGTERM)
        assert training.process.wait(30) == 128 + signal.SIGTERM  # most of it: python's own end, with torch loaded
        assert f"ended at once, as it was asked twice; continue with: dft train {training.run.path}" in training.stderr
        assert gone(training.run)


def test_signals_as_nohup_and_batch_systems_send_them(run_yaml: Path) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does; children inherit it
    try:
        with Training(run_yaml) as training:
            assert training.until(training.reaches(2))
            kill(training.process.pid, signal.SIGHUP)  # the terminal is closed: nobody listens
            assert training.until(training.reaches(last_step(training.run) + 3))
            for pid in [*training.ranks().values(), training.process.pid]:  # the whole job at once, as systemd does
                kill(pid, signal.SIGTERM)
            assert_saved(training)
    finally:
        signal.signal(signal.SIGHUP, former)
    with Training(run_yaml) as training:
        assert training.until(training.reaches(last_step(training.run) + 2))
        kill(training.process.pid, signal.SIGUSR1)
        assert_saved(training)


_STARTING: dict[str, Callable[[Training], object]] = {
    "its directory is made": lambda training: (training.run.path / "config.json").exists(),
    "a rank is there": lambda training: training.ranks(),
}


@pytest.mark.parametrize("happened", _STARTING.values(), ids=_STARTING)
def test_a_stop_while_the_ranks_are_starting_is_resumable_too(
    tmp_path: Path, bases: Callable[..., Path], happened: Callable[[Training], object]
) -> None:
    """The run has more steps than it can make before it is asked, however busy the machine."""
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    with Training(write_run_yaml(tmp_path, bases("qwen3"), rows, optim={"max_steps": 100_000})) as training:
        assert training.until(lambda: happened(training))
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75, training.stderr
        assert f"continue with: dft train {training.run.path} --nproc 2\n" in training.stderr
        assert gone(training.run)


def many_rows(folder: Path, base: Path) -> Path:
    """A run.yaml with rows that take seconds to tokenise."""
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(40_000):
            messages = [{"role": "user", "content": f"row {number}"}, {"role": "assistant", "content": "abc"}]
            file.write(json.dumps({"id": f"row-{number}", "messages": messages}) + "\n")
    return write_run_yaml(folder, base, rows, data={"validation": None}, optim={"max_steps": 2})


def tokenises(run: RunDirectory) -> bool:
    """Whether an entry of the cache is being made."""
    return any((run.path.parent / ".cache" / "data").glob(".*"))


def test_a_stop_while_the_command_tokenises_leaves_nothing(tmp_path: Path, bases: Callable[..., Path]) -> None:
    with Training(many_rows(tmp_path, bases("llama"))) as training:
        assert training.until(lambda: tokenises(training.run))
        kill(training.process.pid, signal.SIGUSR1)
        assert training.wait() == 75, training.stderr
        (told,) = training.stderr.splitlines()
        assert told.startswith("dft: stopped: stopped on request before the training began; nothing is lost")
        assert not training.run.path.exists()
        assert not tokenises(training.run)


@pytest.mark.slow
def test_a_stop_while_the_ranks_tokenise_again_is_resumable(tmp_path: Path, bases: Callable[..., Path]) -> None:
    """As on a node that does not see the cache of the node where the run was prepared."""
    run_yaml = many_rows(tmp_path, bases("llama"))
    assert train(run_yaml, 1, "--prepare-only")[0] == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    shutil.rmtree(run.path.parent / ".cache")
    command = [sys.executable, "-m", "distributed_ft.train", str(run.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not tokenises(run) and process.poll() is None:
            time.sleep(0.01)
        asked = time.monotonic()
        process.send_signal(signal.SIGUSR1)
        _, stderr = process.communicate(timeout=150)
        assert time.monotonic() - asked < 5
    message = f"stopped on request before the first step; continue with: dft train {run.path}"
    assert (process.returncode, stderr.splitlines()[-1]) == (75, message)
    assert train(run_yaml)[0] == 0


@pytest.mark.slow
def test_a_stop_within_a_save_lets_the_checkpoint_count(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    reference = train_undisturbed(write_run_yaml(tmp_path, bases("qwen3"), rows, "undisturbed"))
    run_yaml = write_run_yaml(tmp_path, bases("qwen3"), rows)
    with Training(run_yaml) as training:
        assert training.until(training.saves_after(0))
        kill(training.process.pid, signal.SIGUSR1)
        assert training.wait() == 75, training.stderr
    newest = training.run.newest_complete()
    assert newest is not None
    assert newest.step == last_step(training.run) in (3, 4)
    code, stderr = train(run_yaml)
    assert code == 0, stderr
    assert curve(training.run) == curve(reference)
    assert weights(training.run) == weights(reference)


def validates(training: Training) -> bool:
    """Whether a validation has begun."""
    return training.run.progress.exists() and read_json(training.run.progress)["phase"] == "validating"


@pytest.mark.parametrize("steps", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stop_within_a_validation_gives_it_up_and_the_resumed_run_makes_it_up(
    tmp_path: Path, bases: Callable[..., Path], steps: int
) -> None:
    """After the step that it is asked at there are more steps, or none."""
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    held_out = write_rows(tmp_path / "held-out.jsonl", 500)
    changes = {"optim": {"max_steps": steps}, "data": {"validation": str(held_out)}, "checkpoint": {"every": 4}}
    reference = train_undisturbed(write_run_yaml(tmp_path, bases("qwen3"), rows, "undisturbed", **changes))
    run_yaml = write_run_yaml(tmp_path, bases("qwen3"), rows, **changes)
    with Training(run_yaml) as training:
        assert training.until(lambda: validates(training))
        kill(training.process.pid, signal.SIGUSR1)
        assert training.wait() == 75, training.stderr
    assert not [line for line in curve(training.run) if "val_loss" in line], "it was over before it was asked to stop"
    assert last_step(training.run) == 4
    assert read_json(training.run.progress)["phase"] == "stopped"
    newest = training.run.newest_complete()
    assert newest is not None
    assert newest.step == 4
    code, stderr = train(run_yaml)
    assert code == 0, stderr
    assert curve(training.run) == curve(reference)
    assert weights(training.run) == weights(reference)
    assert read_json(training.run.progress)["phase"] == "finished"
