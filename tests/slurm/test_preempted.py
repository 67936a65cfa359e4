"""Pre-emption by Slurm itself: a job of a higher partition takes the nodes."""

from pathlib import Path

import pytest
from support.cluster import Cluster
from support.commands import curve

from benchmarks.preemption import finished, job_of, last_step, said, submit, until, weights, write_run
from distributed_ft.artifacts import RunDirectory
from launcher import attempts

pytestmark = pytest.mark.slurm


def test_a_job_that_gives_way_to_another_saves_within_the_grace_and_goes_on_afterwards(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    """Slurm tells only the tasks at the beginning of the grace, not the batch script."""
    options = ("--nodes", "2", "--gpus-per-node", "2", "--partition", "low", "--until-done")
    run = submit(write_run(tmp_path, "run"), options)
    until(lambda: last_step(run) >= 13, f"does not train:\n{said(run)}")
    script = tmp_path / "urgent.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={tmp_path}/urgent.out\nsleep 1\n")
    urgent = cluster.submit(script, "--partition=high", "--nodes=4", "--exclusive")
    cluster.wait(urgent, "COMPLETED")
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)
    assert curve(run) == curve(whole)
    events = attempts.history(run)
    assert [event.outcome for event in events if event.event == "end"] == ["stopped", "finished"]
    begun = [event for event in events if event.event == "begin"]
    stopped = next(event for event in events if event.event == "end")
    assert stopped.message == f"stopped on request after step {begun[1].step}"  # nothing is trained twice
    assert cluster.show(job_of(run))["Restarts"] == "1"
