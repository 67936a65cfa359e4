"""Evaluation beside a training that publishes and removes checkpoints."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.evaluation import claims, watch
from distributed_ft.evaluation.__main__ import main
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.jobs import is_live
from distributed_ft.publishing import prune, publish, staging
from distributed_ft.records import Progress
from launcher import local

MakeRun = Callable[..., RunDirectory]


def save(run: RunDirectory, step: int, model: Path, keep: int = 1) -> None:
    """What the trainer does."""
    partial = staging(run, step)
    shutil.copytree(model, partial / "model")
    (partial / "state").mkdir()
    (partial / "state" / "train.json").write_text("{}")
    publish(run, partial, step, world_size=1)
    prune(run, keep)


def say(run: RunDirectory, phase: str, step: int) -> None:
    """What the trainer does."""
    progress = Progress(schema=1, phase=phase, step=step, total_steps=40, world_size=1, updated="now")  # type: ignore[arg-type]
    write_json(run.progress, progress.model_dump(by_alias=True))


def accuracy(run: RunDirectory) -> dict[str, float]:
    return {r.model: r.score for r in run.task_results() if r.task == "people"}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """squeue("echo RUNNING"): what the command of that name does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(watch, "ASK_SECONDS", 0.0)

    def does(what: str) -> None:
        (folder / "squeue").write_text(f"#!/bin/sh\n{what}\n")
        (folder / "squeue").chmod(0o755)

    return does


def test_every_checkpoint_is_scored_while_the_trainer_keeps_one(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({})
    say(run, "training", 0)

    def train() -> None:
        for step, name in ((10, "untrained"), (20, "kept"), (30, "forgot"), (40, "untrained")):
            time.sleep(1.5)
            save(run, step, adapters[name])
            say(run, "training", step)
        say(run, "finished", 40)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert main([str(run.path), "--watch"]) == 0
    trainer.join()
    steps = {f"step-000000{step}": score for step, score in ((10, 0), (20, 1), (30, 1), (40, 0))}
    assert accuracy(run) == {"base": 0, "few-shot": 0, **steps}
    assert run.best_file.read_text() == "step-00000020\n"  # which the trainer therefore kept
    assert [c.step for c in run.all_checkpoints()] == [20, 40]
    assert not claims.claimed(run)
    told = capsys.readouterr()
    assert "waiting for a checkpoint: the training is at step 0 of 40, training, " in told.err
    assert "step 20 BEST" in told.out


def test_a_claim_survives_its_checkpoint_and_the_driver_and_best_never_names_what_is_gone(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({})
    save(run, 10, adapters["kept"])
    claims.Claims(run).take()  # by a driver that was killed
    save(run, 20, adapters["untrained"])
    assert [c.step for c in run.all_checkpoints()] == [20]
    (claim,) = claims.claimed(run)
    assert claim.verify("model/") is None
    say(run, "finished", 40)
    assert main([str(run.path), "--watch"]) == 0
    assert accuracy(run)["step-00000010"] == 1
    assert run.best_file.read_text() == "step-00000020\n"
    reason = json.loads((run.evaluation / "summary.json").read_text())["selection"]["reason"]
    assert "; step 10 would be it (highest task accuracy, 1.000, among 2 of 2" in reason
    assert reason.endswith("but checkpoint.keep removed it")
    assert reason in capsys.readouterr().out


def test_what_was_scored_is_believed_and_a_stopped_training_is_told_once(
    make_run: MakeRun,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run({10: adapters["kept"]})
    evaluate(run.path)
    say(run, "stopped", 10)
    waits = 0

    def sleep(_: float) -> None:
        nonlocal waits
        waits += 1
        assert run.best_file.read_text() == "step-00000010\n"
        if waits == 3:
            say(run, "finished", 40)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert main([str(run.path), "--watch"]) == 0
    told = capsys.readouterr().err
    assert told.count("waiting for a checkpoint: the training stopped at step 10 of 40, ") == 1
    assert f"; `dft train {run.path}` continues it" in told
    assert told.count("(stored before)") == 3


def test_best_moves_on_when_a_trainer_removes_what_it_has_just_come_to_name(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["kept"]})
    say(run, "training", 20)
    judged = run.evaluation / "summary.json"
    named = []

    def until(happens: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not happens() and time.monotonic() < deadline:
            time.sleep(0.01)
        named.append(run.best_file.read_text())

    def train() -> None:
        until(lambda: judged.exists() and set(json.loads(judged.read_text())["forgetting"]) == {"10", "20"})
        shutil.rmtree(run.checkpoints / "step-00000010")  # when nothing is left to score
        until(lambda: run.best_file.read_text() != named[0])
        say(run, "finished", 40)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert main([str(run.path), "--watch"]) == 0
    trainer.join()
    assert named == ["step-00000010\n", "step-00000020\n"]
    assert run.best_file.read_text() == "step-00000020\n"


def test_the_driver_without_watch_scores_what_was_claimed_too(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({})
    save(run, 10, adapters["kept"])
    claims.Claims(run).take()
    save(run, 20, adapters["untrained"])
    evaluate(run.path)
    assert accuracy(run)["step-00000010"] == 1
    assert not claims.claimed(run)


def test_claims_are_links_or_copies_of_what_is_published(
    make_run: MakeRun, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run({})
    (run.checkpoints / "step-00000005" / "model").mkdir(parents=True)  # without a manifest
    save(run, 10, adapters["kept"])
    taking = claims.Claims(run)
    (claim,) = taking.waiting()
    assert (claim.model / "adapter_model.safetensors").stat().st_nlink == 2
    assert not claim.state.exists()
    claims.release(claim)
    assert taking.waiting() == []  # each once

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(run, 20, adapters["kept"])
    (copy,) = taking.waiting()
    assert copy.model_digest() == run.all_checkpoints()[-1].model_digest()
    assert copy.verify("model/") is None


def test_damaged_ones_are_told_and_the_others_scored(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["kept"], 30: adapters["untrained"]})
    weights = run.checkpoints / "step-00000010" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (run.checkpoints / "step-00000030" / "model" / "adapter_model.safetensors").unlink()
    say(run, "finished", 40)
    assert main([str(run.path), "--watch"]) == 2
    told = capsys.readouterr().err
    assert "dft: error: step-00000010 is damaged" in told
    assert "step-00000030: not scored: " in told
    assert run.best_file.read_text() == "step-00000020\n"


def test_a_second_driver_refuses_and_names_the_first_and_neither_minds_the_trainer(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({})
    with run.lock(), run.evaluation_lock():
        for arguments in ([], ["--watch"]):
            assert main([str(run.path), *arguments]) == 2
            assert f"another evaluation is running there (process {os.getpid()} on " in capsys.readouterr().err


def test_settings_are_not_changed_under_a_driver_that_judges_by_them(make_run: MakeRun) -> None:
    run = make_run({})
    before = run.config.read_bytes()
    with run.evaluation_lock(), pytest.raises(CheckpointError, match="another evaluation is running there"):
        local.evaluate(run.path, overrides=["evaluation.few_shot=0"])
    assert run.config.read_bytes() == before


def test_it_ends_when_the_job_is_gone_and_says_so(
    make_run: MakeRun, adapters: dict[str, Path], squeue: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"]})
    say(run, "stopped", 10)
    squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert main([str(run.path), "--watch", "--train-job", "7"]) == 0
    assert run.best_file.read_text() == "step-00000010\n"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "the training has ended at step 10 of 40: Slurm has no job 7 any more; all that it left is scored"


def test_it_goes_on_waiting_for_a_job_that_was_submitted_in_the_place_of_the_first(
    make_run: MakeRun, squeue: Callable[[str], None]
) -> None:
    run = make_run({})
    write_json(run.slurm / "job.json", {"job": "8"})
    squeue('[ "$3" = 8 ] && echo PENDING')
    trainer = watch._Trainer(run, "7")
    assert not trainer.where(40).over
    squeue("exit 0")
    assert trainer.where(40).over


def test_a_directory_that_is_not_there_is_waited_for_only_with_its_job(
    tmp_path: Path, squeue: Callable[[str], None]
) -> None:
    with pytest.raises(CheckpointError, match=r"start the training first, or name its job with --train-job"):
        watch.watch(tmp_path / "none")
    squeue("echo COMPLETED")
    with pytest.raises(CheckpointError, match="not a run directory, and Slurm has no job 7"):
        watch.watch(tmp_path / "none", "7")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("does", "live"),
    [
        ("echo PENDING", True),
        ("echo COMPLETED; echo RUNNING", True),
        ("echo COMPLETING", True),
        ("echo CANCELLED", False),
        ("exit 0", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_only_an_answer_ends_a_job(squeue: Callable[[str], None], does: str, live: bool | None) -> None:
    squeue(does)
    assert is_live("7") is live


def test_a_job_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="no Slurm on this machine"):
        is_live("7")
