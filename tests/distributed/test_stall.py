"""The rank that the others wait for is found by what torch's flight recorder counts, with the place where it stands."""

import faulthandler
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.ranks import run_ranks

from distributed_ft import beats
from distributed_ft.artifacts import RunDirectory
from distributed_ft.beats import Pulse
from distributed_ft.parallel.world import World, collectives_entered
from distributed_ft.train.signals import StopRequest
from launcher.stall import LOOK_SECONDS, Stall, Vigil


def stands_still(world: World, folder: Path) -> None:
    """Rank 1 does not come to the collective before somebody has found it."""
    os.environ[beats.VARIABLE] = str(folder)
    StopRequest().listen(lambda: None, lambda: beats.count(world.rank, collectives_entered()))
    faulthandler.register(signal.SIGQUIT, (folder / "logs" / f"rank-{world.rank}.log").open("a"), chain=True)
    world.from_main("in step so far")
    Pulse(world.rank).beat(7, "training")
    deadline = time.monotonic() + 30
    while world.rank == 1 and not (folder / "found").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    world.sum(1)


def test_the_rank_that_does_not_come_to_a_collective_is_told_from_those_that_wait_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFT_STALL_SECONDS", "2")
    (tmp_path / "logs").mkdir()
    vigil, found, over = Vigil(tmp_path, RunDirectory(tmp_path)), list[Stall](), threading.Event()

    def watch() -> None:
        while not found and not over.wait(0.1):
            found.extend(stall for stall in [vigil.look()] if stall is not None)
        (tmp_path / "found").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_ranks(3, stands_still, folder=tmp_path)
    over.set()
    watcher.join()
    (stall,) = found
    assert (stall.rank, stall.how, stall.alone) == (1, "stands still", True)
    assert "stands_still" in stall.stack.splitlines()[0]
    counts = beats.collectives(tmp_path)
    assert counts[0] == counts[2] == counts[1] + 1


def test_a_rank_that_saves_is_given_the_time_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFT_STALL_SECONDS", "0.5")
    monkeypatch.setenv(beats.VARIABLE, str(tmp_path))
    vigil = Vigil(tmp_path, RunDirectory(tmp_path))
    Pulse(0).beat(3, "saving")
    for _ in range(3):
        time.sleep(LOOK_SECONDS)
        assert vigil.look() is None
