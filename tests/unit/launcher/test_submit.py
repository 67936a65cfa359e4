"""What a job asks for, the script that asks for it, and what no node could ever run."""

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory, write_json
from launcher.cluster import ClusterConfig
from launcher.slurm import Partition
from launcher.submit import BODY, Options, for_evaluation, former_options, problems, script, submission

RUN = RunDirectory(Path("/shared/my runs/triage"))
MAIN = Partition("main", True, nodes=4, max_seconds=None, gpus=4, cpus=32)
SHORT = Partition("short", False, nodes=2, max_seconds=3600, gpus=0, cpus=32)
OFFERED = (MAIN, SHORT)


def test_the_command_line_beats_the_last_submission_which_beats_the_cluster() -> None:
    cluster = ClusterConfig(partition="main", qos="normal", time="4:00:00", nodes=1, gpus_per_node=4)
    former = {"time": "8:00:00", "nodes": 2, "until_done": True, "gone_key": 1}
    given = {"nodes": 3, "time": None, "until_done": None, "run": "run.yaml", "account": "nlp"}
    options = Options.of(cluster, former, given)
    assert options == Options(
        nodes=3, gpus_per_node=4, time="8:00:00", partition="main", account="nlp", qos="normal", until_done=True
    )
    assert Options.of(ClusterConfig(), {}, {}) == Options()
    assert Options.of(cluster, former, {"until_done": False}).until_done is False


def test_a_chain_and_an_evaluation_are_asked_for_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert former_options(run) == {}
    sent = {"nodes": 2, "array": "1-8%1", "with_eval": True, "until_done": True}
    write_json(run.slurm / "job.json", {"schema": 1, "job": "7", "options": sent})
    assert former_options(run) == {"nodes": 2, "until_done": True}


@pytest.mark.parametrize(
    ("options", "processes", "ranks"),
    [
        (Options(), 1, 1),
        (Options(nodes=2, gpus_per_node=4), 4, 8),
        (Options(nodes=3, processes_per_node=2), 2, 6),
        (Options(nodes=2, gpus_per_node=4, processes_per_node=1), 1, 2),
        (for_evaluation(Options(nodes=2, gpus_per_node=4, processes_per_node=2)), 1, 1),
    ],
)
def test_each_gpu_has_a_process_and_a_node_without_any_has_one(options: Options, processes: int, ranks: int) -> None:
    assert (options.processes, options.num_ranks) == (processes, ranks)


PROBLEMS: dict[str, tuple[Options, tuple[str, ...]]] = {
    "nothing": (Options(nodes=4, gpus_per_node=4, time="30-0", partition="main"), ()),
    "nothing, in the default partition": (Options(nodes=4, gpus_per_node=4), ()),
    "nothing, in a chain": (Options(array="1-8%1"), ()),
    "a partition that is not there": (
        Options(partition="gpux"),
        ("--partition: 'gpux' is not a partition here; there are: main, short",),
    ),
    "more GPUs than a node has": (
        Options(gpus_per_node=8),
        ("--gpus-per-node: 8, but the nodes of main have 4 GPUs",),
    ),
    "GPUs where there are none": (
        Options(partition="short", gpus_per_node=1),
        ("--gpus-per-node: 1, but the nodes of short have no GPU",),
    ),
    "more nodes than there are": (Options(nodes=5), ("--nodes: 5, but main has 4",)),
    "more time than allowed": (
        Options(partition="short", time="1:00:01"),
        ("--time: 1:00:01 is more than short allows (60 minutes)",),
    ),
    "no time": (Options(time="soon"), ("--time: 'soon' is no time; write minutes, H:MM:SS or D-H:MM:SS",)),
    "two jobs of a run at once": (Options(array="1-8"), ("--array: '1-8': one run is trained by one job at a time;",)),
    "two at once, by four": (Options(array="1-8%4"), ("--array: '1-8%4': one run is trained by one job at a time;",)),
    "processes without a GPU": (
        Options(gpus_per_node=2, processes_per_node=4),
        ("--processes-per-node: 4 processes on 2 GPUs; each needs its own",),
    ),
    "all at once": (
        Options(partition="short", nodes=9, gpus_per_node=9, time="9-0", array="x"),
        ("--array: 'x'", "--gpus-per-node: 9", "--nodes: 9", "--time: 9-0"),
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_no_node_could_ever_run_is_told_at_once(name: str) -> None:
    options, expected = PROBLEMS[name]
    found = list(problems(options, OFFERED, ClusterConfig()))
    assert len(found) == len(expected)
    for line, words in zip(found, expected, strict=True):
        assert line.startswith(words)


def test_without_a_default_partition_only_what_is_known_is_judged() -> None:
    assert list(problems(Options(nodes=99, gpus_per_node=99), (SHORT,), ClusterConfig())) == []


def train_script(options: Options, **habits: Any) -> str:
    scripts = submission(RUN, options, ClusterConfig(**habits)).scripts
    return scripts["train.sbatch"]


def header(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_what_is_left_out_is_left_to_slurm() -> None:
    assert header(train_script(Options())) == [
        "--job-name=dft-triage",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--signal=B:USR1@180",
        "--no-requeue",
        "--open-mode=append",
        '--output="/shared/my runs/triage/slurm/job-%j.out"',
    ]


HEADERS: dict[str, tuple[Options, dict[str, Any], tuple[str, ...]]] = {
    "a shape": (Options(nodes=2, gpus_per_node=4), {}, ("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=1")),
    "who pays": (
        Options(partition="gpu", account="nlp", qos="high", time="1-0"),
        {},
        ("--partition=gpu", "--account=nlp", "--qos=high", "--time=1-0"),
    ),
    "until it is done": (Options(until_done=True), {}, ("--requeue",)),
    "the nodes": (Options(), {"cpus_per_node": 32, "mem": "200G"}, ("--cpus-per-task=32", "--mem=200G")),
    "time to save": (Options(), {"signal_seconds": 600}, ("--signal=B:USR1@600",)),
    "what is said by hand": (Options(), {"sbatch": ("--exclusive", "-C h100")}, ("--exclusive", "-C h100")),
    "a chain": (
        Options(array="1-8%1"),
        {},
        ("--array=1-8%1", '--output="/shared/my runs/triage/slurm/job-%A_%a.out"'),
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_is_asked_for_is_in_the_header(name: str) -> None:
    options, habits, expected = HEADERS[name]
    assert set(expected) <= set(header(train_script(options, **habits)))


def test_the_parameters_and_the_environment_are_in_the_script() -> None:
    text = train_script(
        Options(nodes=2, gpus_per_node=4, until_done=True, launcher="accelerate"),
        python="/shared/env of mine/bin/python",
        container="apptainer exec --nv image.sif",
        max_requeues=7,
        stall_seconds=90,
        modules=("cuda/12.8",),
        setup="ulimit -n 65536\n",
        env={"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "a b"},
    )
    lines = [line.split("  #")[0].rstrip() for line in text.splitlines()]
    assert {
        "RUN='/shared/my runs/triage'",
        "PYTHON='/shared/env of mine/bin/python'",
        "CONTAINER='apptainer exec --nv image.sif'",
        "export DFT_UNTIL_DONE=1",
        "export DFT_MAX_REQUEUES=7",
        "export DFT_PROCESSES_PER_NODE=4",
        "export DFT_LAUNCHER=accelerate",
        "export DFT_STALL_SECONDS=90",
        "export NCCL_SOCKET_IFNAME=ib0",
        "export NCCL_DEBUG='a b'",
        "module load cuda/12.8",
        "ulimit -n 65536",
    } <= set(lines)
    assert f"PYTHON={sys.executable}" in train_script(Options())


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_the_rest_of_a_script_is_the_shipped_one_s(kind: str) -> None:
    shipped = (files("launcher") / "sbatch" / f"{kind}.sbatch").read_text()
    text = submission(RUN, Options(with_eval=True), ClusterConfig()).scripts[f"{kind}.sbatch"]
    assert text[text.index(BODY) :] == shipped[shipped.index(BODY) :]


def test_the_scripts_have_the_same_parameters_as_those_that_are_submitted_by_hand() -> None:
    """Whatever the head of a shipped script sets, a generated one sets too."""
    for kind in ("train", "eval"):
        shipped = (files("launcher") / "sbatch" / f"{kind}.sbatch").read_text()
        named = re.findall(r"^(?:export )?([A-Z_]+)=", shipped[: shipped.index(BODY)], flags=re.M)
        text = submission(RUN, Options(with_eval=True), ClusterConfig()).scripts[f"{kind}.sbatch"]
        assert named
        assert set(named) <= set(re.findall(r"^(?:export )?([A-Z_]+)=", text, flags=re.M))


def test_a_generated_script_is_bash(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    options = Options(nodes=2, gpus_per_node=4, until_done=True, with_eval=True)
    habits = ClusterConfig(setup="if true; then\n  ulimit -n 1024\nfi\n", modules=("cuda/12.8",), env={"A": "it's"})
    for name, text in submission(RUN, options, habits).scripts.items():
        (tmp_path / name).write_text(text)
        assert text.startswith("#!/bin/bash\n")
        subprocess.run([bash, "-n", str(tmp_path / name)], check=True)


def test_the_evaluation_is_one_process_beside_the_training() -> None:
    wanted = submission(RUN, Options(nodes=4, gpus_per_node=4, with_eval=True), ClusterConfig())
    assert {"--job-name=dft-triage-eval", "--nodes=1", "--gpus-per-node=1", "--requeue"} <= set(
        header(wanted.scripts["eval.sbatch"])
    )
    train, evaluation = wanted.commands
    assert train == "sbatch '/shared/my runs/triage/slurm/train.sbatch'"
    assert evaluation == (
        "sbatch --dependency=after:JOB --export=ALL,TRAIN_JOB=JOB '/shared/my runs/triage/slurm/eval.sbatch'"
    )


def test_the_tasks_of_a_sweep_write_to_files_of_their_own() -> None:
    text = script("train", "dft-x", Path("/runs/x.sweep"), "$(…)", Options(array="0-5%2"), ClusterConfig())
    assert "--output=/runs/x.sweep/job-%A_%a.out" in header(text)
