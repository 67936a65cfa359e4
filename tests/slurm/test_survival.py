"""What a run must survive on a cluster, at length: `make test-slurm`."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster, command_line, environment, pids
from support.commands import curve, dft, train_undisturbed
from support.tiny import write_rows

from benchmarks.preemption import (
    MOMENTS,
    STEPS,
    finished,
    interrupt,
    job_of,
    last_step,
    said,
    submit,
    until,
    weights,
    write_run,
)
from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json, read_json_lines
from distributed_ft.config.load import load_resolved
from distributed_ft.data.order import Order
from distributed_ft.data.store import open_prepared
from launcher import attempts

pytestmark = pytest.mark.slurm
SHAPE = ("--nodes", "2", "--gpus-per-node", "2", "--until-done")


def ranks_of(run: RunDirectory) -> dict[int, int]:
    """Rank -> process id, of all nodes."""
    found = {}
    for pid in pids():
        if "distributed_ft.train " in f"{command_line(pid)} " and str(run.path) in command_line(pid):
            rank = next((e.removeprefix("RANK=") for e in environment(pid) if e.startswith("RANK=")), None)
            if rank is not None:
                found[int(rank)] = pid
    return found


def outcomes(run: RunDirectory) -> list[str | None]:
    return [event.outcome for event in attempts.history(run) if event.event == "end"]


@pytest.mark.parametrize(
    "number", range(len(MOMENTS)), ids=[f"{i}-{m}".replace(" ", "-") for i, m in enumerate(MOMENTS)]
)
def test_interrupted_at_any_moment_it_is_the_same_run(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path, number: int
) -> None:
    at = random.Random(number).randint(2, STEPS - 3)
    run_yaml = write_run(tmp_path, "run")
    stop = lambda job: cluster.signal(job, "USR1")  # noqa: E731
    one = interrupt(run_yaml, MOMENTS[number], SHAPE, stop, at, weights(whole))
    assert (one.equal, one.requeues, one.redone) == (True, 1, 0)
    assert curve(RunDirectory(tmp_path / "runs" / "run")) == curve(whole)


def test_four_then_two_then_three_processes_see_every_sample_once(cluster: Cluster, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 96)
    sections: dict[str, Any] = {
        "data": {"train": str(rows), "validation": None, "packing": False},
        "method": {"dropout": 0.0},  # drawn on each rank, so it differs with their number
        "optim": {"max_steps": 40, "global_batch_size": 12, "micro_batch_size": 1},
    }
    (tmp_path / "one").mkdir()
    alone = train_undisturbed(write_run(tmp_path / "one", "alone", **sections), 4)
    run_yaml = write_run(tmp_path, "run", **sections)
    run = submit(run_yaml, ("--nodes", "2", "--gpus-per-node", "2", "--once"))
    for step, shape in ((10, ("--nodes", "1", "--gpus-per-node", "2")), (20, ("--nodes", "3", "--gpus-per-node", "1"))):
        until(lambda step=step: last_step(run) >= step, f"does not reach {step}:\n{said(run)}")  # type: ignore[misc]
        cluster.signal(job_of(run), "USR1")
        cluster.wait(job_of(run), "FAILED")  # exit code 75, and nobody requeues
        again = dft("submit", str(run.path), *shape, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    lines, expected = read_json_lines(run.metrics), read_json_lines(alone.metrics)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert [line["world_size"] for line in lines] == sorted((line["world_size"] for line in lines), key=[4, 2, 3].index)
    assert {line["world_size"] for line in lines} == {4, 2, 3}
    order = Order.of(load_resolved(run.config), open_prepared(run.data / "manifest.json"))
    assert [line["samples"] for line in lines] == [order.digest(step) for step in range(40)]
    for epoch in range(5):  # of 8 steps
        seen = [sample for step in range(8 * epoch, 8 * epoch + 8) for sample in order.sample_ids(step)]
        assert sorted(seen) == sorted({f"row-{i}" for i in range(96)})
    for ours, theirs in zip(lines, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_the_second_of_two_jobs_refuses_and_names_the_first(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    run = submit(write_run(tmp_path, "run"), SHAPE)
    until(lambda: last_step(run) >= 1, f"does not train:\n{said(run)}")
    refused = dft("submit", str(run.path), cwd=tmp_path)
    assert refused.returncode == 2
    assert f"job {job_of(run)} is running for it" in refused.stderr
    second = cluster.submit(run.slurm / "train.sbatch", "--nodelist=node3,node4")  # as somebody might by hand
    cluster.wait(second, "FAILED")
    assert cluster.show(second)["ExitCode"] == "2:0"
    assert f"job {job_of(run)}" in (run.slurm / f"job-{second}.out").read_text()
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)


def test_killed_while_the_last_checkpoint_is_written_the_pointer_names_a_complete_one(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    run = submit(write_run(tmp_path, "run"), SHAPE)
    partial = run.checkpoints / f".step-{STEPS:08d}.partial"
    until(partial.exists, f"does not save:\n{said(run)}")
    subprocess.run(["scancel", "--full", "-s", "KILL", job_of(run)], check=True)
    subprocess.run(["scancel", job_of(run)], check=True)
    cluster.wait(job_of(run), "CANCELLED", "FAILED", "COMPLETED")
    latest = run.pointer("LATEST")
    assert latest is not None
    assert Checkpoint(latest.path).verify() is None
    again = dft("submit", str(run.path), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)


def test_when_its_time_is_over_before_it_has_stopped_it_is_requeued_all_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "cluster.yaml").write_text("signal_seconds: 1\n")  # Slurm looks every 30 s: too late to be of use
    optim = {"max_steps": 70, "global_batch_size": 64}
    run = submit(
        write_run(tmp_path, "run", optim=optim), ("--nodes", "2", "--gpus-per-node", "2", "--time", "1", "--until-done")
    )
    until(lambda: finished(run), f"does not end:\n{said(run)}", seconds=600)
    steps = [line["step"] for line in read_json_lines(run.metrics) if "loss" in line]
    assert steps == list(range(1, 71))
    assert outcomes(run)[-1] == "finished"
    assert attempts.requeues(attempts.history(run)) >= 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_killed_or_stands_still_is_named_and_the_run_goes_on(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "cluster.yaml").write_text("stall_seconds: 5\n")
    run = submit(write_run(tmp_path, "run"), SHAPE)
    until(lambda: last_step(run) >= 12, f"does not train:\n{said(run)}")
    os.kill(ranks_of(run)[3], number)
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)
    first = next(event for event in attempts.history(run) if event.event == "end")
    assert "rank 3 on node" in first.message
    assert first.outcome == "failed"
    assert first.step is not None
    if number == signal.SIGSTOP:
        assert "distributed_ft" in said(run)  # its stack
    assert first.action == "requeued"


def test_the_same_failure_at_the_same_step_twice_stops(cluster: Cluster, tmp_path: Path) -> None:
    run_yaml = write_run(tmp_path, "run", optim={"lr": 1e30, "max_skipped_steps": 2, "max_grad_norm": None})
    run = submit(run_yaml, SHAPE)
    until(lambda: outcomes(run), f"does not end:\n{said(run)}")
    # a diverged loss is the user's to mend, so it is not tried again at all
    cluster.wait(job_of(run), "FAILED")
    assert outcomes(run) == ["refused"]
    assert cluster.show(job_of(run))["Restarts"] == "0"


def test_a_node_that_is_not_fit_is_left_out_when_the_job_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    run = submit(write_run(tmp_path, "run"), ("--nodes", "1", "--gpus-per-node", "2", "--until-done"))
    until(lambda: last_step(run) >= 1, f"does not train:\n{said(run)}")
    assert dft("cancel", str(run.path), cwd=tmp_path).returncode == 0
    cluster.wait(job_of(run), "CANCELLED")
    script = run.slurm / "train.sbatch"
    text = script.read_text()
    begin = text.index("# One agent a node")
    end = text.index("# Says how it ended")
    bad = (  # in the place of the agents: what one says of a node whose GPU is gone
        'if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then\n'
        '  "$PYTHON" -c "import sys; from launcher.attempts import *; run = RunDirectory(sys.argv[1]);'
        " job = Job.of_environment(); report(run, job, NodeReport(node=job.nodes[0], code=78,"
        ' bad_nodes={job.nodes[0]: \'a GPU is gone\'}))" "$RUN"\nelse\n'
    )
    script.write_text(f"{text[:begin]}{bad}{text[begin:end]}fi\n{text[end:]}")
    job = cluster.submit(script, "--requeue")
    record = read_json(run.slurm / "job.json")
    (run.slurm / "job.json").write_text(json.dumps({**record, "job": job}))
    cluster.wait(job, "COMPLETED", seconds=240)
    begun = [event.nodes for event in attempts.history(run) if event.event == "begin" and event.job == job]
    assert len(begun) == 2
    assert begun[0] != begun[1]
    assert cluster.show(job)["ExcNodeList"] == begun[0][0]


def test_each_checkpoint_is_scored_by_a_second_job_that_is_interrupted_itself(
    cluster: Cluster, whole: RunDirectory, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "test.jsonl", 24, seed=1)
    task = {"name": "letters", "path": str(rows), "metric": "exact_match", "max_new_tokens": 8}
    run_yaml = write_run(tmp_path, "run", evaluation={"tasks": [task], "general": [], "few_shot": 0})
    run = submit(run_yaml, (*SHAPE, "--with-eval"))
    evaluation = str(read_json(run.slurm / "job.json")["eval_job"])
    until(lambda: (run.evaluation / "base").exists(), f"does not evaluate:\n{said(run)}")
    cluster.signal(evaluation, "USR1")
    until(lambda: cluster.show(evaluation)["Restarts"] == "1", f"is not requeued:\n{said(run)}")
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    cluster.wait(evaluation, "COMPLETED", seconds=240)
    assert weights(run) == weights(whole)
    scored = {path.parent.parent.name for path in run.evaluation.glob("*/*/result.json")}
    assert scored == {"base", *(f"step-{step:08d}" for step in range(10, STEPS + 1, 10))}
    assert run.pointer("BEST") is not None


def test_a_sweep_is_a_job_array_and_compared_at_the_end(cluster: Cluster, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "test.jsonl", 12, seed=1)
    task = {"name": "letters", "path": str(rows), "metric": "exact_match", "max_new_tokens": 8}
    evaluation = {"tasks": [task], "general": [], "few_shot": 0}
    run_yaml = write_run(tmp_path, "grid", optim={"max_steps": 6}, evaluation=evaluation)
    swept = dft("sweep", str(run_yaml), "method.rank=2,4", "--submit", "--processes-per-node", "2", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    runs = [RunDirectory(tmp_path / "runs" / f"grid-rank{rank}") for rank in (2, 4)]
    for run in runs:
        until(lambda run=run: finished(run), f"{run.path} does not end")  # type: ignore[misc]
        scores = str(read_json(run.slurm / "job.json")["eval_job"])
        cluster.wait(scores, "COMPLETED", seconds=240)
        assert "finished" in dft("status", str(run.path), cwd=tmp_path).stdout
    compared = dft("compare", str(tmp_path / "runs" / "grid.sweep.json"), cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "grid-rank2" in compared.stdout
    assert "grid-rank4" in compared.stdout


def test_a_chain_of_array_tasks_goes_on_where_the_one_before_ended(cluster: Cluster, tmp_path: Path) -> None:
    run = submit(write_run(tmp_path, "run"), ("--processes-per-node", "2", "--array", "1-3%1"))
    until(lambda: last_step(run) >= 5, f"does not train:\n{said(run)}")
    running = next(event.job for event in attempts.history(run) if event.event == "begin")
    cluster.signal(running, "USR1")
    until(lambda: "finished" in outcomes(run), f"does not end:\n{said(run)}")
    assert outcomes(run)[0] == "stopped"
    assert last_step(run) == STEPS


def test_nodes_of_different_kinds_train_together(cluster: Cluster, tmp_path: Path) -> None:
    run_yaml = write_run(tmp_path, "run", optim={"global_batch_size": 6})
    assert dft("train", str(run_yaml), "--prepare-only", "--nproc", "3", cwd=tmp_path).returncode == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    shipped = Path(__file__).parents[2] / "slurm" / "train.sbatch"
    env = {**os.environ, "RUN": str(run.path), "PYTHON": sys.executable}
    kinds = ["--nodes=1", "--gpus-per-node=2", ":", "--nodes=1", "--gpus-per-node=1"]
    command = ["sbatch", "--parsable", f"--output={tmp_path}/het-%j.out", *kinds, str(shipped)]
    job = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=180)
    printed = "".join(path.read_text() for path in tmp_path.glob("het-*.out"))
    assert outcomes(run) == ["finished"], printed
    assert {line["world_size"] for line in read_json_lines(run.metrics) if "loss" in line} == {3}


def test_accelerate_starts_the_processes_of_each_node(cluster: Cluster, whole: RunDirectory, tmp_path: Path) -> None:
    run = submit(write_run(tmp_path, "run"), (*SHAPE, "--launcher", "accelerate"))
    until(lambda: finished(run), f"does not end:\n{said(run)}")
    assert weights(run) == weights(whole)
