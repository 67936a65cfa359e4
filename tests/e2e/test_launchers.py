"""The same training under torchrun and accelerate: the same losses, the same exit codes, the same way of stopping."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import (
    Training,
    curve,
    gone,
    kill,
    last_step,
    processes_of,
    train,
    train_undisturbed,
    write_run_yaml,
)
from support.tiny import write_rows

from distributed_ft.artifacts import RunDirectory, read_json

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "configs" / "accelerate"
MakeYaml = Callable[..., Path]


@pytest.fixture
def make_yaml(tmp_path: Path, bases: Callable[..., Path]) -> MakeYaml:
    rows = write_rows(tmp_path / "rows.jsonl", 40)

    def make(name: str, strategy: str, max_steps: int = 6) -> Path:
        sections = {"strategy": {"type": strategy}, "optim": {"max_steps": max_steps}}
        return write_run_yaml(tmp_path, bases("llama"), rows, name, checkpoint={"every": 1000}, **sections)

    return make


def prepared(run_yaml: Path, *arguments: str) -> tuple[RunDirectory, str]:
    """The run directory, and the command that starts it, as `dft train --prepare-only` says it."""
    command = [sys.executable, "-m", "launcher", "train", str(run_yaml), "--nproc", "2", "--prepare-only", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return RunDirectory(run_yaml.parent / "runs" / run_yaml.stem), done.stdout.splitlines()[-1].strip()


def by_hand(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person types it, in the repository."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        shell=True,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("file", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_shipped_file_of_accelerate_is_taken_at_its_word(make_yaml: MakeYaml, file: str) -> None:
    reference = curve(train_undisturbed(make_yaml("reference", file)))
    run, said = prepared(make_yaml("run", "launcher"))
    assert said == f"accelerate launch --config_file FILE -m distributed_ft.train {run.path}"
    (shown,) = re.findall("^accelerate launch .*", (REPOSITORY / "docs" / "launchers.md").read_text(), flags=re.M)
    done = by_hand(shown.replace("fsdp.yaml", f"{file}.yaml").replace("RUN_DIR", str(run.path)))
    assert done.returncode == 0, done.stderr
    assert curve(run) == reference
    assert read_json(run.config)["strategy"] == {"type": "launcher"}
    assert read_json(run.environment)["strategy"]["type"] == file


def test_a_contradiction_is_one_message_and_leaves_no_run_directory(make_yaml: MakeYaml) -> None:
    run_yaml = make_yaml("run", "fsdp")
    run = RunDirectory(run_yaml.parent / "runs" / "run")
    code, stderr = train(run_yaml, 2, "--launcher", "accelerate", "--accelerate-config", str(FILES / "ddp.yaml"))
    assert (code, stderr.count("dft: ")) == (2, 1), stderr
    assert 'dft: error: strategy.type: "fsdp" in run.yaml, but "ddp" in accelerate\'s file' in stderr
    assert "Traceback" not in stderr
    assert not run.path.exists()
    code, stderr = train(make_yaml("run", "launcher"), 2, "--launcher", "torchrun")
    assert (code, stderr.count("dft: ")) == (2, 1), stderr
    assert "give --launcher accelerate --accelerate-config FILE" in stderr
    assert not run.path.exists()


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "accelerate"])
def test_a_stop_saves_and_the_run_goes_on_under_any_launcher(make_yaml: MakeYaml, launcher: str) -> None:
    reference = curve(train_undisturbed(make_yaml("undisturbed", "fsdp", 30)))
    run_yaml = make_yaml("run", "fsdp", 30)
    with Training(run_yaml, 2, "--launcher", launcher) as training:
        assert training.until(training.reaches(3))
        kill(training.process.pid, signal.SIGINT if launcher == "torchrun" else signal.SIGTERM)
        assert training.wait() == 75, training.stderr
        again = f"dft train {training.run.path} --nproc 2 --launcher {launcher}\n"
        assert f"saved; continue with: {again}" in training.stderr
        assert "Traceback" not in training.stderr
        assert gone(training.run)
    newest = training.run.newest_complete()
    assert newest is not None
    assert newest.step == last_step(training.run) < 30
    code, stderr = train(run_yaml, 2, *(("--launcher", launcher) if launcher == "accelerate" else ()))
    assert code == 0, stderr
    assert curve(training.run) == reference


def test_under_torchrun_a_second_signal_ends_the_run_at_once_even_when_a_rank_hangs(make_yaml: MakeYaml) -> None:
    with Training(make_yaml("run", "fsdp", 60), 2, "--launcher", "torchrun") as training:
        assert training.until(training.reaches(2))
        kill(training.ranks()[1], signal.SIGSTOP)
        kill(training.process.pid, signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            training.process.wait(2)
        kill(training.process.pid, signal.SIGTERM)
        assert training.process.wait(30) == 128 + signal.SIGTERM  # most of it: python's own end, with torch loaded
        assert "ended at once, as it was asked twice" in training.stderr
        assert gone(training.run)


@pytest.mark.slow
def test_under_torchrun_a_stop_while_starting_a_dead_rank_and_a_dead_command_leave_no_process(
    make_yaml: MakeYaml,
) -> None:
    run_yaml = make_yaml("run", "fsdp", 60)
    with Training(run_yaml, 2, "--launcher", "torchrun") as training:
        assert training.until(training.ranks)
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75, training.stderr
        assert f"continue with: dft train {training.run.path} --nproc 2 --launcher torchrun\n" in training.stderr
        assert gone(training.run)
    with Training(run_yaml, 2, "--launcher", "torchrun") as training:
        assert training.until(training.reaches(last_step(training.run) + 1))
        kill(training.ranks()[1], signal.SIGKILL)
        assert training.wait() == 1
        assert gone(training.run)
    with Training(run_yaml, 2, "--launcher", "torchrun") as training:
        assert training.until(training.reaches(last_step(training.run) + 1))
        kill(training.process.pid, signal.SIGKILL)
        assert gone(training.run)


@pytest.mark.slow
def test_torchrun_outlives_what_a_batch_system_sends_to_every_process_of_a_job(make_yaml: MakeYaml) -> None:
    """Before the ranks can hear it, and while they train."""
    run_yaml = make_yaml("run", "fsdp", 60)
    for moment in (lambda t: t.ranks(), lambda t: last_step(t.run) >= 3):
        with Training(run_yaml, 2, "--launcher", "torchrun") as training:
            assert training.until(lambda moment=moment, training=training: moment(training))
            for pid in {training.process.pid, *processes_of(training.run)}:
                kill(pid, signal.SIGUSR1)
            assert training.wait() == 75, training.stderr
            assert training.stderr.count("stopped on request") == 1
            assert "Traceback" not in training.stderr
            assert gone(training.run)


@pytest.mark.slow
def test_a_run_that_leaves_it_to_the_launcher_goes_on_under_another_strategy(make_yaml: MakeYaml) -> None:
    reference = curve(train_undisturbed(make_yaml("undisturbed", "fsdp", 30)))
    run_yaml, by = make_yaml("run", "launcher", 30), ("--launcher", "accelerate", "--accelerate-config")
    with Training(run_yaml, 2, *by, str(FILES / "fsdp.yaml")) as training:
        assert training.until(training.reaches(3))
        kill(training.process.pid, signal.SIGTERM)
        assert training.wait() == 75, training.stderr
        assert f"--launcher accelerate --accelerate-config {FILES / 'fsdp.yaml'}\n" in training.stderr
    code, stderr = train(run_yaml, 2, *by, str(FILES / "ddp.yaml"))
    assert code == 0, stderr
    assert "ddp on 2 x cpu" in stderr
    losses, expected = (
        [line["loss"] for line in lines if "loss" in line] for lines in (curve(training.run), reference)
    )
    assert losses == pytest.approx(expected, rel=1e-4)
