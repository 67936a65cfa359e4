"""The core of what a batch job must stand, on a real Slurm; `make test` runs these."""

import json
import os
import time
from pathlib import Path

import pytest
from support.cluster import NODES, Cluster, command_line, pids
from support.commands import curve, dft

from benchmarks.preemption import finished, interrupt, job_of, last_step, said, submit, until, weights, write_run
from distributed_ft.artifacts import RunDirectory
from launcher import attempts

SHAPE = ("--nodes", "2", "--gpus-per-node", "2", "--until-done")


def left_of(run: RunDirectory, seconds: float = 15) -> list[str]:
    """Command lines that name the run directory still, after so many seconds at most."""
    deadline = time.monotonic() + seconds
    while True:
        found = [line for pid in pids() if str(run.path) in (line := command_line(pid)) and pid != os.getpid()]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_two_nodes_of_two_interrupted_once_equal_four_local_processes(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    run_yaml = write_run(tmp_path, "run")
    one = interrupt(run_yaml, "training", SHAPE, lambda job: cluster.signal(job, "USR1"), 14, weights(whole))
    run = RunDirectory(tmp_path / "runs" / "run")
    assert one.equal
    assert (one.requeues, one.redone) == (1, 0)
    assert cluster.show(job_of(run))["Restarts"] == "1"
    assert curve(run) == curve(whole)
    assert left_of(run) == []
    state = dft("status", str(run.path), cwd=tmp_path).stdout
    assert "finished" in state
    assert "node1, node2" in state


def test_a_node_that_dies_is_named_and_the_run_goes_on_elsewhere(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    run = submit(write_run(tmp_path, "run"), SHAPE)
    until(lambda: last_step(run) >= 13, f"does not train:\n{said(run)}")
    lost = next(event.nodes for event in attempts.history(run) if event.event == "begin")[1]
    cluster.kill(lost)
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)
    assert curve(run) == curve(whole)
    ends = [event for event in attempts.history(run) if event.event == "end"]
    assert [event.outcome for event in ends] == ["failed", "finished"]
    assert lost in ends[0].message
    assert lost not in [event.nodes for event in attempts.history(run) if event.event == "begin"][1]


@pytest.mark.slurm  # a minute; `make test` has the unit tests of cancelling
def test_cancelling_leaves_a_run_that_goes_on_and_no_process(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    run = submit(write_run(tmp_path, "run"), SHAPE)
    until(lambda: last_step(run) >= 12, f"does not train:\n{said(run)}")
    assert dft("cancel", str(run.path), cwd=tmp_path).returncode == 0
    cluster.wait(job_of(run), "CANCELLED")
    assert left_of(run) == []
    assert run.newest_complete() is not None
    time.sleep(8)  # a requeued job would be back by now
    assert cluster.state_of(job_of(run)) == "CANCELLED"
    again = dft("submit", str(run.path), cwd=tmp_path)  # as it was submitted before
    assert again.returncode == 0, again.stderr
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)


BAD = {
    "a partition that is not there": (
        ("--partition", "gpux"),
        "'gpux' is not a partition here; there are: main, short",
    ),
    "more GPUs than a node has": (("--gpus-per-node", "9"), "--gpus-per-node: 9, but the nodes of main have 4 GPUs"),
    "more nodes than there are": (("--nodes", "9"), f"--nodes: 9, but main has {len(NODES)}"),
    "more time than allowed": (("--partition", "short", "--time", "1:00:00"), "more than short allows (2 minutes)"),
    "no time": (("--time", "tomorrow"), "'tomorrow' is no time"),
    "two jobs of one run at once": (("--array", "1-4"), "one run is trained by one job at a time; write 1-8%1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_slurm_could_never_run_is_refused_before_it_is_submitted(
    cluster: Cluster, tmp_path: Path, case: str
) -> None:
    options, message = BAD[case]
    refused = dft("submit", str(write_run(tmp_path, "run")), *options, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs" / "run").exists()


def test_without_slurm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    refused = dft("submit", str(write_run(tmp_path, "run")), cwd=tmp_path)
    assert refused.returncode == 2
    assert "Slurm is not on this machine" in refused.stderr


def test_a_run_directory_that_cannot_be_made_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    refused = dft("submit", str(write_run(tmp_path, "run")), cwd=tmp_path)
    assert refused.returncode == 2
    assert "runs" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_dry_run_prints_the_script_and_makes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    printed = dft("submit", str(write_run(tmp_path, "run")), *SHAPE, "--with-eval", "--dry-run", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert "#SBATCH --nodes=2" in printed.stdout
    assert "# sbatch " in printed.stdout
    assert not (tmp_path / "runs" / "run").exists()
    json.loads((tmp_path / "run.yaml").read_text())
