"""A real Slurm for the tests of this folder, and one uninterrupted run that the others must equal."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.commands import train_undisturbed

from benchmarks.preemption import write_run
from distributed_ft.artifacts import RunDirectory


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The cluster that `make slurm-up` brought up, or one for this session."""
    cluster = Cluster()
    was_up = cluster.running
    cluster.up()
    yield cluster
    if not was_up:
        cluster.down()


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """It, for whatever this test starts; every node is on, and no job is left when the test ends."""
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    running.up()
    yield running
    running.cancel_all()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Four processes on this machine, without Slurm and without interruption."""
    return train_undisturbed(write_run(tmp_path_factory.mktemp("whole"), "whole"), 4)
