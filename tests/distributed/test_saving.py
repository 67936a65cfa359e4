"""A save is a copy that training waits for, and files that appear while it goes on: what counts, and when."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows
from support.training import open_here

from distributed_ft.artifacts import RunDirectory, read_json_lines, sha256_of
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError, Stopped
from distributed_ft.parallel.strategy import Strategy
from distributed_ft.parallel.world import World
from distributed_ft.train.fit import fit
from distributed_ft.train.run import Run
from distributed_ft.train.signals import StopRequest

GO = "the disk may go on"
KILLED = 9  # exit code
STRATEGIES = ("ddp", "fsdp")


class SlowDisk:
    """A strategy whose state is not on disk before `go` is there; on rank 1 the write may fail then."""

    def __init__(self, inner: Strategy, world: World, go: Path, fails: bool = False) -> None:
        self.inner, self.world, self.go, self.fails = inner, world, go, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def save(self, directory: Path, background: bool) -> Future[Any]:
        written, slow = self.inner.save(directory, background), self

        class Slowly(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                while not slow.go.exists():
                    time.sleep(0.005)
                assert written is not None
                result = written.result(timeout)
                if slow.fails and slow.world.rank == 1:
                    raise OSError("No space left on device")
                return result

        return Slowly()


class Empties:
    """A strategy that gathers the second tensor as an empty one, as other trainers' ZeRO-3 does."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def gather(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, tensor) in enumerate(self.inner.gather(names)):
            yield name, torch.empty(0) if number == 1 else tensor


class Watch(StopRequest):
    """Does something at the boundary after a step; asks to stop at `stop_at`."""

    def __init__(self, at: dict[int, Callable[[], None]], stop_at: int | None = None) -> None:
        self.at, self.stop_at, self.step = at, stop_at, -1

    @property  # type: ignore[override]
    def requested(self) -> bool:
        self.step += 1
        self.at.get(self.step, lambda: None)()
        return self.step == self.stop_at


def released(go: Path, run: Run) -> None:
    """Let the disk go on, and wait until this rank's save is done with."""
    go.touch()
    while not run.checkpoint_written:
        time.sleep(0.005)


def damage(partial: Path) -> None:
    """One number of the adapter, on the disk."""
    (file,) = (partial / "model").glob("*.safetensors")
    tensors = load_file(file)
    tensors[min(tensors)][0, 0] = torch.nan
    save_file(tensors, file)


def slow(world: World, config: RunConfig, go: Path) -> list[list[str]]:
    """The checkpoints that are there at step 5, after the save of step 4, and when the disk has gone on."""
    names: list[list[str]] = []
    run = open_here(world, config)
    note = lambda: names.append([c.name for c in run.directory.all_checkpoints()])  # noqa: E731
    run.stop = Watch({5: note, 6: lambda: released(go, run), 7: note})
    run.strategy = SlowDisk(run.strategy, world, go)
    fit(run)
    return names


def fails(world: World, config: RunConfig, go: Path) -> tuple[str, bool, int]:
    """What is raised, whether the checkpoint before is what it was, and the step."""
    run, before = after_four(world, config)
    run.strategy = SlowDisk(run.strategy, world, go, fails=True)
    run.stop = Watch({5: lambda: released(go, run)})
    return raised(run), files_of(run.directory) == before, run.state.step


def damaged(world: World, config: RunConfig, go: Path) -> tuple[str, bool]:
    """As `fails`, when rank 0's model is damaged on the disk before the state is written."""
    run, before = after_four(world, config)
    run.strategy = SlowDisk(run.strategy, world, go)

    def spoil() -> None:
        if world.is_main:
            damage(run.directory.checkpoints / ".step-00000008.partial")
            released(go, run)

    run.stop = Watch({5: spoil})
    return raised(run), files_of(run.directory) == before


def empty(world: World, config: RunConfig, go: Path) -> tuple[str, bool]:
    """What is raised, and whether nothing is left of the save."""
    run = open_here(world, config, Watch({}))
    run.strategy = Empties(run.strategy)
    return raised(run), files_of(run.directory) == {}


CASES: dict[str, Callable[[World, RunConfig, Path], Any]] = {
    "slow": slow,
    "fails": fails,
    "damaged": damaged,
    "empty": empty,
}


def watch(world: World, configs: dict[str, RunConfig], folder: Path) -> dict[str, Any]:
    """All cases; what this rank saw of each."""
    return {name: CASES[name.split()[1]](world, config, folder / f"{name} {GO}") for name, config in configs.items()}


def after_four(world: World, config: RunConfig) -> tuple[Run, dict[str, str]]:
    """A run that stopped after four steps, and its files."""
    run = open_here(world, config)
    fit_four(run)
    return run, files_of(run.directory)


def fit_four(run: Run) -> None:
    """Train four steps: there is a checkpoint."""
    run.stop = Watch({}, stop_at=4)
    with contextlib.suppress(Stopped):
        fit(run)
    newest = run.directory.newest_complete()
    assert newest is not None
    assert newest.step == run.state.step == 4


def raised(run: Run) -> str:
    """Train on; what is said."""
    try:
        fit(run)
    except CheckpointError as error:
        return str(error)
    return ""


def files_of(run: RunDirectory) -> dict[str, str]:
    files = (path for path in run.checkpoints.rglob("*") if path.is_file())
    return {path.relative_to(run.path).as_posix(): sha256_of(path) for path in files}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, bases: Callable[..., Path]) -> Callable[..., RunConfig]:
    folder = tmp_path_factory.mktemp("saving")
    rows = write_rows(folder / "rows.jsonl", 40)

    def config(name: str, strategy: str, in_background: bool = True, **changes: Any) -> RunConfig:
        made = make_config(
            bases("llama"),
            rows,
            folder / name,
            strategy={"type": strategy},
            method={"dropout": 0.1},
            optim={"max_steps": 10, "global_batch_size": 4},
            checkpoint={"every": 4, "async": in_background, **changes},
        )
        prepare_run(made, 2)
        return made

    return config


@pytest.fixture(scope="module")
def seen(make: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = [f"{strategy} {case}" for strategy in STRATEGIES for case in CASES]
    configs = {case: make(case, case.split()[0]) for case in cases}
    return run_ranks(2, watch, configs=configs, folder=tmp_path_factory.mktemp("go"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_goes_on_and_nothing_counts_before_every_file_is_on_disk(
    seen: list[dict[str, Any]], strategy: str
) -> None:
    for names in (rank[f"{strategy} slow"] for rank in seen):
        assert names == [[], ["step-00000004"]], "at step 5, before, and at step 7, after the disk went on"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_write_that_fails_on_one_rank_is_one_message_on_all_at_the_next_step(
    seen: list[dict[str, Any]], strategy: str
) -> None:
    for raised, untouched, step in (rank[f"{strategy} fails"] for rank in seen):
        assert "the checkpoint of step 8 could not be written: No space left on device" in raised
        assert "continue with: dft train" in raised
        assert untouched
        assert step == 9, "the first boundary after it"
    assert seen[0][f"{strategy} fails"] == seen[1][f"{strategy} fails"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_is_damaged_on_the_disk_is_found_before_it_counts(
    seen: list[dict[str, Any]], strategy: str
) -> None:
    for raised, untouched in (rank[f"{strategy} damaged"] for rank in seen):
        assert "adapter_model.safetensors: base_model.model.model.layers.0" in raised
        assert "not finite" in raised
        assert "the checkpoint of step 8 does not count. Earlier checkpoints are untouched" in raised
        assert untouched


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tensor_that_is_gathered_empty_is_refused_by_name(seen: list[dict[str, Any]], strategy: str) -> None:
    for raised, nothing_written in (rank[f"{strategy} empty"] for rank in seen):
        assert ".lora_B.default.weight: gathered as [0], its shape is [32, 4]" in raised
        assert nothing_written


def save_and_die(world: World, config: RunConfig, go: Path) -> None:
    """A save that never ends, and a kill of every rank in the middle of it."""
    run = open_here(world, config, Watch({}))
    fit_four(run)
    run.stop = Watch({5: lambda: os._exit(KILLED)})
    run.strategy = SlowDisk(run.strategy, world, go)
    fit(run)


def go_on(world: World, config: RunConfig) -> int:
    run = open_here(world, config, Watch({}))
    step = run.state.step
    fit(run)
    return step


def losses(config: RunConfig) -> list[tuple[int, float]]:
    lines = read_json_lines(Path(config.runs_dir) / config.name / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines]


def adapter(config: RunConfig) -> str:
    newest = RunDirectory(Path(config.runs_dir) / config.name).newest_complete()
    assert newest is not None
    assert newest.step == 10
    return sha256_of(newest.model / "adapter_model.safetensors")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_kill_in_the_middle_of_a_write_loses_nothing_and_saving_at_once_trains_the_same_run(
    make: Callable[..., RunConfig], tmp_path: Path, strategy: str
) -> None:
    killed, at_once = make(f"{strategy} killed", strategy), make(f"{strategy} at once", strategy, in_background=False)
    with pytest.raises(AssertionError, match=f"a rank ended with status {KILLED}"):
        run_ranks(2, save_and_die, config=killed, go=tmp_path / GO)
    assert [step for step, _ in losses(killed)] == list(range(1, 10))
    assert run_ranks(2, go_on, config=killed) == [4, 4]
    assert run_ranks(2, go_on, config=at_once) == [0, 0]
    assert losses(killed) == losses(at_once)
    assert adapter(killed) == adapter(at_once)


def test_the_seconds_of_a_save_stand_in_the_line_of_the_step_after_it(make: Callable[..., RunConfig]) -> None:
    for in_background in (True, False):
        config = make(f"timed {in_background}", "ddp", in_background)
        run_ranks(2, go_on, config=config)
        lines = read_json_lines(Path(config.runs_dir) / config.name / "metrics.jsonl")
        saves = [line for line in lines if "checkpoint_seconds" in line]
        assert 1 <= len(saves) <= 2
        for line in saves:
            blocked, whole = line["checkpoint_blocked_seconds"], line["checkpoint_seconds"]
            assert 0 < blocked < whole if in_background else blocked == pytest.approx(whole, abs=0.02)
