"""`dft submit`: from a run and a cluster's habits to a batch script that people can read, and its submission."""

import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from distributed_ft.artifacts import RunDirectory, read_json, write_atomic, write_json
from distributed_ft.config.load import LoadedRun, load_resolved
from distributed_ft.config.schema import LauncherStrategy, RunConfig
from distributed_ft.errors import ConfigError
from launcher import attempts, local, slurm
from launcher.attempts import Event
from launcher.check import readable_bytes
from launcher.cluster import ClusterConfig
from launcher.plan import Launcher, Start
from launcher.slurm import Partition
from launcher.status import submitted

BODY = "# --- how it is run: the same for every run "  # the rest of a script, from slurm/*.sbatch, begins with it
_OFTEN_LOCAL = ("/tmp/", "/var/tmp/", "/dev/shm/")  # a node has its own of these


@dataclass(frozen=True)
class Options:
    """What a job asks for; None: left to Slurm."""

    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    array: str | None = None
    until_done: bool = False
    with_eval: bool = False
    launcher: Launcher = "torchrun"

    @staticmethod
    def of(cluster: ClusterConfig, former: dict[str, Any], given: dict[str, Any]) -> "Options":
        """The cluster's habits, what the run was submitted with before, and the command line, which beats both."""
        names = {field.name for field in fields(Options)}
        habits = {key: value for key, value in cluster.model_dump().items() if key in names}
        chosen = {key: value for key, value in given.items() if key in names and value is not None}
        before = {key: value for key, value in former.items() if key in names}
        if "array" in chosen:  # a chain is for where a job cannot be requeued
            before.pop("until_done", None)
        return Options(**{**habits, **before, **chosen})

    @property
    def processes(self) -> int:
        """Of each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def num_ranks(self) -> int:
        """Processes of all nodes."""
        return self.nodes * self.processes


@dataclass(frozen=True)
class Submission:
    """What was submitted, or would be. scripts: file name -> text, the training's first."""

    run: RunDirectory
    options: Options
    scripts: dict[str, str]

    @property
    def commands(self) -> list[str]:
        """For the shell, one a script; JOB stands for the number that the first one prints."""
        paths = [str(self.run.slurm / name) for name in self.scripts]
        train, *evaluation = paths
        after = [f"sbatch --dependency=after:JOB --export=ALL,TRAIN_JOB=JOB {shlex.quote(path)}" for path in evaluation]
        return [shlex.join(["sbatch", train]), *after]


def former_options(run: RunDirectory) -> dict[str, Any]:
    """What the run was submitted with before; a chain of array tasks and an evaluation are asked for anew."""
    file = run.slurm / "job.json"
    options: dict[str, Any] = read_json(file).get("options", {}) if file.exists() else {}
    return {key: value for key, value in options.items() if key not in ("array", "with_eval")}


def former_evaluation(run: RunDirectory) -> str | None:
    """The job that still evaluates the run."""
    job = submitted(run, "eval_job")
    return job if job and slurm.alive(job) else None


def submission(run: RunDirectory, options: Options, cluster: ClusterConfig) -> Submission:
    """The scripts of a run. Pure but for reading the templates."""
    name = f"dft-{run.name}"
    scripts = {"train.sbatch": script("train", name, run.slurm, shlex.quote(str(run.path)), options, cluster)}
    if options.with_eval:
        small = replace(for_evaluation(options), array=None)
        scripts["eval.sbatch"] = script("eval", f"{name}-eval", run.slurm, shlex.quote(str(run.path)), small, cluster)
    return Submission(run, options, scripts)


def for_evaluation(options: Options) -> Options:
    """One process, on one GPU where there are any."""
    return replace(options, nodes=1, gpus_per_node=min(1, options.gpus_per_node), processes_per_node=1)


def script(
    kind: Literal["train", "eval"], name: str, folder: Path, run: str, options: Options, cluster: ClusterConfig
) -> str:
    """The batch script. `run`: the run directory, as a word of the shell; folder: where its output goes."""
    template = (files("launcher") / "sbatch" / f"{kind}.sbatch").read_text()
    body = template[template.index(BODY) :]
    what = {"train": "The training", "eval": "The evaluation beside the training"}[kind]
    lines = [
        "#!/bin/bash",
        f"# {what} of {run}, written by `dft submit`; change it, and submit it again with sbatch, as you like.",
        *_header(kind, name, folder, options, cluster),
        "",
        f"RUN={run}",
        f"PYTHON={shlex.quote(cluster.python or sys.executable)}",
        f"CONTAINER={shlex.quote(cluster.container)}",
        *(_settings(options, cluster) if kind == "train" else ()),
        *_environment(cluster),
        "",
    ]
    return "\n".join(lines) + body


def _header(kind: str, name: str, folder: Path, options: Options, cluster: ClusterConfig) -> Iterator[str]:
    asked = {
        "job-name": name,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": cluster.cpus_per_node,
        "mem": cluster.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "array": options.array,
    }
    for key, value in asked.items():
        if value is not None:
            yield f"#SBATCH --{key}={value}"
    for option in cluster.sbatch:
        yield f"#SBATCH {option}"
    yield f"# so long before the end of its time the job is asked to stop: {cluster.signal_seconds} s"
    yield f"#SBATCH --signal=B:USR1@{cluster.signal_seconds}"
    yield "#SBATCH --requeue" if options.until_done or kind == "eval" else "#SBATCH --no-requeue"
    yield "#SBATCH --open-mode=append"
    number = "%j" if options.array is None else "%A_%a"
    output = str(folder).replace("%", "%%") + f"/{'job' if kind == 'train' else 'eval'}-{number}.out"
    yield f'#SBATCH --output="{output}"' if " " in output else f"#SBATCH --output={output}"


def _settings(options: Options, cluster: ClusterConfig) -> Iterator[str]:
    """Parameters of train.sbatch, with what they mean."""
    values = {
        "UNTIL_DONE": (int(options.until_done), "1: requeued until the run is finished"),
        "MAX_REQUEUES": (cluster.max_requeues, "then a person has to look"),
        "PROCESSES_PER_NODE": (options.processes, "one a GPU" if options.gpus_per_node else "on CPUs"),
        "LAUNCHER": (options.launcher, "what starts the processes of a node"),
        "STALL_SECONDS": (cluster.stall_seconds, "a training that stands still so long is ended"),
    }
    for name, (value, meaning) in values.items():
        yield f"{f'export DFT_{name}={value}':<44}# {meaning}"


def _environment(cluster: ClusterConfig) -> Iterator[str]:
    for name, value in cluster.env.items():
        yield f"export {name}={shlex.quote(value)}"
    for module in cluster.modules:
        yield f"module load {shlex.quote(module)}"
    if cluster.setup:
        yield cluster.setup.rstrip("\n")


# --- what is wrong with it -----------------------------------------------------------------------------------------


def problems(options: Options, offered: Sequence[Partition], cluster: ClusterConfig) -> Iterator[str]:
    """Why no node could ever run it: such a job would wait for ever, or be refused. Pure."""
    names = {partition.name: partition for partition in offered}
    asked = options.partition.split(",") if options.partition else [p.name for p in offered if p.default]
    unknown = [name for name in asked if name not in names]
    if unknown:
        yield f"--partition: {unknown[0]!r} is not a partition here; there are: {', '.join(names)}"
    partition = None if unknown or not asked else _best([names[name] for name in asked])
    for key in ("account", "qos", "time", "array"):
        if re.search(r"\s", getattr(options, key) or ""):
            yield f"--{key}: {getattr(options, key)!r} may hold no white space"
    if options.array is not None and options.until_done:
        yield "--array: a chain of jobs goes on by itself; leave out --until-done (or give --once)"
    if options.array is not None and not re.fullmatch(r"\d+(-\d+)?%1", options.array):
        yield (
            f"--array: {options.array!r}: one run is trained by one job at a time; write 1-8%1 for eight jobs, each of "
            "which goes on where the one before ended"
        )
    seconds = None
    try:
        seconds = slurm.seconds_of(options.time) if options.time else None
    except ConfigError as error:
        yield f"--time: {error}"
    if seconds is not None and seconds <= cluster.signal_seconds:
        yield (
            f"--time: {options.time}: the job is asked to stop {cluster.signal_seconds} s before its end "
            "(signal_seconds in cluster.yaml), and so at once; give more time"
        )
    if options.gpus_per_node and options.processes > options.gpus_per_node:
        yield f"--processes-per-node: {options.processes} processes on {options.gpus_per_node} GPUs; each needs its own"
    if partition is None:
        return
    if options.gpus_per_node > partition.gpus:
        held = f"{partition.gpus} GPUs" if partition.gpus else "no GPU"
        yield f"--gpus-per-node: {options.gpus_per_node}, but the nodes of {partition.name} have {held}"
    if options.nodes > partition.nodes:
        yield f"--nodes: {options.nodes}, but {partition.name} has {partition.nodes}"
    if seconds is not None and partition.max_seconds is not None and seconds > partition.max_seconds:
        yield f"--time: {options.time} is more than {partition.name} allows ({partition.max_seconds // 60} minutes)"


def _best(partitions: Sequence[Partition]) -> Partition:
    """What the best of several can do: Slurm takes the first that fits."""
    limits = [partition.max_seconds for partition in partitions]
    return Partition(
        name=",".join(partition.name for partition in partitions),
        default=False,
        nodes=max(partition.nodes for partition in partitions),
        max_seconds=None if None in limits else max(limit for limit in limits if limit is not None),
        gpus=max(partition.gpus for partition in partitions),
        cpus=max(partition.cpus for partition in partitions),
    )


def warnings(run: RunDirectory, config: RunConfig, cluster: ClusterConfig) -> Iterator[str]:
    """What may be meant, and would fail on other nodes."""
    python = cluster.python or sys.executable
    for what, path in {"the run directory": str(run.path), "model.base": config.model.base, "Python": python}.items():
        if path.startswith(_OFTEN_LOCAL):
            yield f"{what} is {path}: on most clusters each node has its own {'/'.join(path.split('/')[:2])}"


def check_disk(config: RunConfig) -> None:
    """Raises ConfigError when the checkpoints will not fit: a job would find that out in the night."""
    from distributed_ft.train import preflight

    needed, free = preflight.disk_for_checkpoints(config)
    if needed > free:
        raise ConfigError(
            f"checkpoint.keep: the checkpoints of the run take up to {readable_bytes(needed)}, and "
            f"{readable_bytes(free)} are free in {config.runs_dir}; keep fewer, or choose another runs_dir"
        )


# --- doing it ------------------------------------------------------------------------------------------------------


def submit(target: "LoadedRun | Path", given: dict[str, Any], cluster: ClusterConfig, dry_run: bool) -> int:
    """Check, write the scripts into the run directory, and submit them.

    Args:
        target: a run.yaml, or a run directory to go on with.
        given: options of the command line; None where nothing was said.
        dry_run: print the script(s) and the command(s), and do no more.

    Raises ConfigError, DataError, CheckpointError before anything is submitted.
    """
    config = load_resolved(RunDirectory(target).config) if isinstance(target, Path) else target.config
    run = RunDirectory((target if isinstance(target, Path) else Path(config.runs_dir) / config.name).absolute())
    options = Options.of(cluster, former_options(run), given)
    check(run, config, options, cluster, dry_run)
    wanted = submission(run, options, cluster)
    if dry_run:
        for name, text in wanted.scripts.items():
            print(f"# {run.slurm / name}\n{text}")
        print("# submitted by:\n" + "\n".join(f"# {command}" for command in wanted.commands))
        return 0
    refuse_what_slurm_refuses(wanted.scripts.values())
    start = Start(options.num_ranks, options.launcher)
    if isinstance(target, Path):
        local.prepare_again(run.path, start)
    else:
        local.prepare(target, start)
    _send(wanted)
    return 0


def check(run: RunDirectory, config: RunConfig, options: Options, cluster: ClusterConfig, dry_run: bool) -> None:
    """All that can be known before it is submitted; without a cluster at hand a dry run goes without its word.

    Raises ConfigError, DataError, CheckpointError."""
    try:
        found = [*problems(options, slurm.partitions(), cluster), *_in_the_queue(run)]
    except ConfigError as error:
        if not dry_run:
            raise
        found = []
        print(f"dft: warning: not compared with what the cluster has: {error}", file=sys.stderr)
    if found:
        raise ConfigError("\n".join(found))
    if isinstance(config.strategy, LauncherStrategy):
        raise ConfigError(
            "strategy.type: launcher: takes what a file of `accelerate launch` says, which a job does not have; write "
            "strategy: {type: fsdp} (or ddp, deepspeed)"
        )
    local.check(config, run, Start(options.num_ranks, options.launcher))
    check_disk(config)
    for warning in warnings(run, config, cluster):
        print(f"dft: warning: {warning}", file=sys.stderr)


def _in_the_queue(run: RunDirectory) -> Iterator[str]:
    job = submitted(run, "job")
    if job is not None and slurm.alive(job):
        yield (
            f"{run.path}: job {job} is {slurm.state(job).lower()} for it; wait for it (dft status {run.path}), or "
            f"dft cancel {run.path}"
        )


def refuse_what_slurm_refuses(scripts: Iterable[str]) -> None:
    """Accounts, qualities of service and the like, which only Slurm knows. Raises ConfigError."""
    for text in scripts:
        with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
            file.write(text)
            file.flush()
            refused = slurm.refusal(Path(file.name))
        if refused is not None:
            raise ConfigError(f"Slurm would refuse it: {refused}")


def write_scripts(wanted: Submission) -> None:
    """Into the run directory, with the commands that submit them."""
    for name, text in wanted.scripts.items():
        write_atomic(wanted.run.slurm / name, text)
    write_atomic(wanted.run.slurm / "command.txt", "\n".join(wanted.commands) + "\n")


def record_submission(run: RunDirectory, job: str, options: Options, eval_job: str | None = None) -> None:
    """For `dft status`, `logs` and `cancel`, and for the next `dft submit` of this run."""
    sent = {"schema": 1, "job": job, "eval_job": eval_job, "submitted": attempts.now(), "options": asdict(options)}
    write_json(run.slurm / "job.json", sent)


def _send(wanted: Submission) -> None:
    run = wanted.run
    write_scripts(wanted)
    attempts.record(run, Event(event="submit", job="", at=attempts.now()))  # before the job can say that it begins
    job = slurm.submit(run.slurm / "train.sbatch")
    former = former_evaluation(run)
    record_submission(run, job, wanted.options, former)
    print(f"submitted {run.path} as job {job}: {_shape(wanted.options)}")
    if "eval.sbatch" in wanted.scripts and former is not None:
        print(f"its evaluation is job {former} still")
    elif "eval.sbatch" in wanted.scripts:
        options = [f"--dependency=after:{job}", "--kill-on-invalid-dep=yes", f"--export=ALL,TRAIN_JOB={job}"]
        evaluation = slurm.submit(run.slurm / "eval.sbatch", options)
        write_json(run.slurm / "job.json", {**read_json(run.slurm / "job.json"), "eval_job": evaluation})
        print(f"its evaluation is job {evaluation}, beside it")
    print(f"watch it: dft status {run.path}, dft logs {run.path} -f; end it: dft cancel {run.path}")


def _shape(options: Options) -> str:
    devices = f"{options.gpus_per_node} GPUs" if options.gpus_per_node else f"{options.processes} processes"
    until = ", requeued until it is finished" if options.until_done else ""
    return f"{options.nodes} x {devices}{until}"
