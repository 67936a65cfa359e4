"""A real Slurm for the tests of this folder, and one uninterrupted run that the others must equal."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.commands import train_undisturbed

from benchmarks.preemption import write_run
from distributed_ft.artifacts import RunDirectory


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One of this session's own, beside any that is up: the tests kill nodes and cancel every job. Its logs stay where
    a test failed."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="dft-slurm-", dir="/tmp")))  # short, as sockets are in it
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
    if not request.session.testsfailed:
        shutil.rmtree(cluster.state)


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
