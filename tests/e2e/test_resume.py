"""Kill any process at any moment: the resumed run is the run that would have been."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Training, curve, gone, kill, last_step, train, train_undisturbed, weights, write_run_yaml
from support.tiny import make_base, write_rows

from distributed_ft.artifacts import RunDirectory

STRATEGIES = ("ddp", "fsdp")
FINISHED = 24  # steps
Reference = tuple[list[dict[str, Any]], str]  # curve and final weights


@pytest.fixture(scope="module")
def make_yaml(tmp_path_factory: pytest.TempPathFactory, bases: Callable[..., Path]) -> Callable[..., Path]:
    """A new run.yaml in a folder of its own, over the same base and rows."""
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 40)

    def make(strategy: str, **sections: dict[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp(strategy)
        return write_run_yaml(folder, bases("qwen3"), rows, strategy={"type": strategy}, **sections)

    return make


@pytest.fixture(scope="module")
def uninterrupted(make_yaml: Callable[..., Path]) -> Callable[[str], Reference]:
    """The run that nobody disturbs, by strategy, made once."""
    made: dict[str, Reference] = {}

    def reference(strategy: str) -> Reference:
        if strategy not in made:
            run = train_undisturbed(make_yaml(strategy))
            made[strategy] = curve(run), weights(run)
            assert [line["step"] for line in made[strategy][0] if "loss" in line] == list(range(1, FINISHED + 1))
        return made[strategy]

    return reference


def kill_something(training: Training, rng: random.Random, what: str, inside_a_save: bool, latest: int) -> None:
    """At a random moment before step `latest`; nothing happens when the run ends before it."""
    newest, seen = training.run.newest_complete(), last_step(training.run)
    inside = training.saves_after(newest.step if newest else 0)
    if not training.until(inside if inside_a_save else training.reaches(rng.randint(seen + 1, max(seen + 1, latest)))):
        return
    time.sleep(rng.uniform(0.0, 0.03 if inside_a_save else 0.1))
    ranks = training.ranks()
    victims = {"a rank": [ranks.get(rng.randrange(2))], "the launcher": [training.process.pid]}
    victims["every process"] = [training.process.pid, *ranks.values()]
    for pid in victims[what]:
        if pid is not None:
            kill(pid, signal.SIGKILL)


def survive(run_yaml: Path, rng: random.Random, kills: list[tuple[str, bool]], expected: Reference) -> None:
    """Start the same command again after every kill; at the end nothing may tell the run from the undisturbed one."""
    interrupted, total = 0, max(line["step"] for line in expected[0])
    for number, (what, inside_a_save) in enumerate(kills, 1):
        with Training(run_yaml) as training:
            kill_something(training, rng, what, inside_a_save, number * total // (len(kills) + 1))
            interrupted += training.wait() != 0
            assert gone(training.run), "a rank outlived its launcher"
    assert interrupted >= len(kills) - 1, "the runs ended before they were killed"
    code, stderr = train(run_yaml)
    assert code == 0, stderr
    run = RunDirectory(run_yaml.parent / "runs" / "run")
    assert curve(run) == expected[0]
    assert weights(run) == expected[1]
    assert not list(run.checkpoints.glob(".*")), "leftovers of killed saves"


KILLS = {
    "ddp": [("a rank", True), ("every process", False)],
    "fsdp": [("the launcher", True), ("a rank", False)],
}


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_kills_one_inside_a_save_leave_the_same_losses_and_the_same_adapter(
    make_yaml: Callable[..., Path], uninterrupted: Callable[[str], Reference], strategy: str
) -> None:
    survive(make_yaml(strategy), random.Random(strategy), KILLS[strategy], uninterrupted(strategy))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ten_kills_leave_the_same_losses_and_the_same_adapter(make_yaml: Callable[..., Path], strategy: str) -> None:
    """A longer run, so that ten kills find it running; half of them inside a save."""
    changes = {"optim": {"max_steps": 120}, "checkpoint": {"every": 4, "keep": 2}}
    reference = train_undisturbed(make_yaml(strategy, **changes))
    rng = random.Random(f"ten {strategy}")
    kills = [(rng.choice(["a rank", "the launcher", "every process"]), index % 2 == 0) for index in range(10)]
    survive(make_yaml(strategy, **changes), rng, kills, (curve(reference), weights(reference)))


def test_a_finished_run_started_again_does_nothing_and_a_run_of_another_config_is_refused(
    make_yaml: Callable[..., Path],
) -> None:
    run_yaml = make_yaml("ddp", optim={"max_steps": 4})
    assert train(run_yaml, 1)[0] == 0
    run = RunDirectory(run_yaml.parent / "runs" / "run")
    before = {p: p.read_bytes() for p in [run.metrics, *run.checkpoints.rglob("*")] if p.is_file()}
    run.latest_file.write_text("step-00000003\n")  # as a kill between the last rename and this leaves it
    (run.checkpoints / ".step-00000002.partial").mkdir()
    code, stderr = train(run_yaml, 1)
    assert code == 0, stderr
    assert run.latest_file.read_text() == "step-00000004\n"
    assert not list(run.checkpoints.glob(".*"))
    assert {p: p.read_bytes() for p in [run.metrics, *run.checkpoints.rglob("*")] if p.is_file()} == before

    code, stderr = train(run_yaml, 1, "optim.lr=0.5", "method.rank=8")
    assert code == 2
    assert "optim.lr: 0.005 in the run directory, 0.5 now" in stderr
    assert "method.rank: 4 in the run directory, 8 now" in stderr
    assert "Traceback" not in stderr
    assert {p: p.read_bytes() for p in [run.metrics, *run.checkpoints.rglob("*")] if p.is_file()} == before


def test_a_start_that_comes_second_changes_nothing_for_the_first(make_yaml: Callable[..., Path]) -> None:
    run_yaml = make_yaml("ddp", optim={"max_steps": 4})
    run = RunDirectory(run_yaml.parent / "runs" / "run")
    run.path.mkdir(parents=True)
    with run.lock():  # the first has not written its config yet
        code, stderr = train(run_yaml, 1)
    assert code == 2
    assert "another training is running there" in stderr
    assert not run.config.exists()


def test_another_base_under_a_run_is_refused(make_yaml: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    run_yaml = make_yaml("ddp", model={"base": str(base)}, optim={"max_steps": 2})
    assert train(run_yaml, 1)[0] == 0
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")  # one weight
    code, stderr = train(run_yaml, 1)
    assert code == 2
    assert f"model.base: {base}: model.safetensors changed since" in stderr
    assert "Traceback" not in stderr


def test_torchrun_and_our_launcher_train_the_same_run(
    make_yaml: Callable[..., Path], uninterrupted: Callable[[str], Reference]
) -> None:
    run_yaml = make_yaml("fsdp")
    code, stderr = train(run_yaml, 2, "--prepare-only")
    assert code == 0, stderr
    run = run_yaml.parent / "runs" / "run"
    assert not (run / "checkpoints").exists()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "distributed_ft.train", str(run)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert (curve(RunDirectory(run)), weights(RunDirectory(run))) == uninterrupted("fsdp")


def test_data_that_changed_under_a_run_is_refused(make_yaml: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    run_yaml = make_yaml("ddp", data={"train": str(rows)}, optim={"max_steps": 3})
    run = train_undisturbed(run_yaml)
    before = curve(run)
    lines = rows.read_text().splitlines()
    first = json.loads(lines[0])
    first["messages"][1]["content"] += "!"
    rows.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    code, stderr = train(run_yaml, 1)
    assert code == 2
    assert "the training data changed since the run began" in stderr
    assert curve(run) == before
