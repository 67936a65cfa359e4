"""A driver that is killed or asked to stop loses no finished item, and ends up where an undisturbed one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.task import Request, Response
from distributed_ft.publishing import publish, staging

MakeRun = Callable[..., RunDirectory]


def outcome(run: RunDirectory) -> dict[str, Any]:
    """Every file of the evaluation by its bytes; results without their seconds."""
    found: dict[str, Any] = {"BEST": run.best_file.read_text()}
    for path in sorted(run.evaluation.rglob("*")):
        if path.is_file() and path.name != ".lock":
            found[str(path.relative_to(run.evaluation))] = path.read_bytes()
        if path.name == "result.json":
            found[str(path.relative_to(run.evaluation))] = {**json.loads(path.read_bytes()), "seconds": 0}
    return found


def undisturbed(run: RunDirectory) -> dict[str, Any]:
    """What becomes of the run, which afterwards is as it was before."""
    evaluate(run.path)
    found = outcome(run)
    shutil.rmtree(run.evaluation)
    run.best_file.unlink()
    return found


def count(monkeypatch: pytest.MonkeyPatch, asked: list[str], most: int) -> None:
    """Note which items are asked; after so many, an end comes."""
    answer = TransformersEngine.answer

    def counting(engine: TransformersEngine, requests: Sequence[Request]) -> list[Response]:
        if len(asked) >= most:
            raise KeyboardInterrupt
        asked.extend(request.id for request in requests)
        return answer(engine, requests)

    monkeypatch.setattr(TransformersEngine, "answer", counting)


def test_items_that_were_answered_are_not_asked_again(
    make_run: MakeRun, adapters: dict[str, Path], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = str(files / "skills.jsonl")
    run = make_run({10: adapters["untrained"], 20: adapters["kept"]}, batch_size=2, generic_text=text)
    expected = undisturbed(run)
    asked: list[str] = []
    for most in (4, 8, 19, 30, 1000):  # the first two within the people of base, one within its skills
        with monkeypatch.context() as patch:
            count(patch, asked, most)
            if most < 1000:
                with pytest.raises(KeyboardInterrupt):
                    evaluate(run.path)
            else:
                evaluate(run.path)
        for half in run.evaluation.rglob("samples.partial.jsonl"):
            with half.open("a") as file:
                file.write('{"model_digest": "half a li')
    assert len(asked) == 3 * (6 + 9) + 6
    assert outcome(run) == expected


def test_answers_of_another_model_or_to_another_question_do_not_count(
    make_run: MakeRun, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run({10: adapters["untrained"]}, batch_size=2, few_shot=0)
    asked: list[str] = []
    with monkeypatch.context() as patch:
        count(patch, asked, 15 + 4)  # four people of the checkpoint's
        with pytest.raises(KeyboardInterrupt):
            evaluate(run.path)
    kept = run.answers("step-00000010", "people").read_text()

    partial = staging(run, 10)  # trained anew
    shutil.copytree(adapters["kept"], partial / "model")
    publish(run, partial, 10, world_size=1)
    with monkeypatch.context() as patch:
        count(patch, asked, 1000)
        evaluate(run.path)
    assert len(asked) == 15 + 4 + 15
    assert {r.model: r.score for r in run.task_results() if r.task == "people"}["step-00000010"] == 1

    config = json.loads(run.config.read_text())
    config["evaluation"]["tasks"][0]["max_new_tokens"] = 23
    run.config.write_text(json.dumps(config))
    run.answers("step-00000010", "people").write_text(kept)
    with monkeypatch.context() as patch:
        count(patch, asked, 1000)
        evaluate(run.path)
    assert len(asked) == 15 + 4 + 15 + 2 * 6


def start(run: RunDirectory) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "distributed_ft.evaluation", str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_kills_and_requests_at_any_moment_change_nothing(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    steps = dict.fromkeys(range(10, 90, 10), adapters["untrained"]) | {90: adapters["kept"]}
    run = make_run(steps, batch_size=1)
    expected = undisturbed(run)

    def begun(model: str, task: str) -> Callable[[], bool]:
        return lambda: run.results(model, task).is_dir()

    moments: list[tuple[Callable[[], object], signal.Signals]] = [
        (lambda: time.sleep(1.0) or True, signal.SIGTERM),  # importing
        (lambda: (run.evaluation / ".lock").exists(), signal.SIGUSR1),  # loading
        (begun("base", "people"), signal.SIGKILL),
        (begun("step-00000020", "people"), signal.SIGTERM),
        (lambda: (run.results("step-00000050", "skills") / "result.json").exists(), signal.SIGINT),
    ]
    for happens, number in moments:
        process = start(run)
        while not happens():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 75), errors
        assert "Traceback" not in errors
        if number != signal.SIGKILL:
            assert errors.splitlines()[-1] == (
                "stopped on request; scores of finished items are kept, and the same command goes on from there"
            )
    evaluate(run.path)
    assert outcome(run) == expected
