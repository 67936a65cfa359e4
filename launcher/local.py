"""Runs a training or an evaluation on this machine, and reports its exit code."""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from distributed_ft.artifacts import RunDirectory, write_atomic, write_json
from distributed_ft.config.load import LoadedRun, differences, load_resolved, resolved_json, with_evaluation
from distributed_ft.config.schema import LauncherStrategy, RunConfig
from distributed_ft.errors import EXIT_USER, CheckpointError, ConfigError
from launcher import plan as plans
from launcher.foreign import run_launcher
from launcher.plan import LaunchPlan, Process, Start
from launcher.processes import heeding, run_plan, stoppable

if TYPE_CHECKING:
    from distributed_ft.data.store import PreparedData

_NOT_BEGUN = "stopped on request before the training began; nothing is lost, and the same command begins again"


def train(loaded: LoadedRun, start: Start) -> int:
    """Train a run.yaml: start it, or go on where its run directory stands. Returns the exit code.

    Raises:
        ConfigError, DataError: something in the run.yaml or its data is wrong; no run directory is left behind.
        CheckpointError: the run directory cannot be continued.
    """
    config = loaded.config
    run = RunDirectory(Path(config.runs_dir) / config.name)
    with stoppable(_NOT_BEGUN):
        fresh = not run.path.exists()
        _refuse_other_config(run, config)
        data = _check(run, config, start)
        with heeding() as asked, _made(run, config, loaded.text, data) as lock:
            code = _launch_training(run, config, start, lock, asked)
            if fresh and code == EXIT_USER and not (run.metrics.exists() or run.checkpoints.exists()):
                shutil.rmtree(run.path, ignore_errors=True)  # refused by the ranks, so nothing began
            return code


def check(config: RunConfig, run: RunDirectory, start: Start) -> None:
    """What `prepare` checks, writing nothing into the run directory. Raises as `train` does."""
    _refuse_other_config(run, config)
    _check(run, config, start, here=False)


def prepare(loaded: LoadedRun, start: Start) -> RunDirectory:
    """All of `train` but the start, for ranks that may run elsewhere: the run directory. Raises as `train` does."""
    config = loaded.config
    run = RunDirectory(Path(config.runs_dir) / config.name)
    _refuse_other_config(run, config)
    with _made(run, config, loaded.text, _check(run, config, start, here=False)):
        _write_accelerate_file(run, config, start)
    return run


def prepare_again(path: Path, start: Start) -> RunDirectory:
    """The same for a run that exists."""
    from distributed_ft.train import preflight

    run = RunDirectory(path)
    config = load_resolved(run.config)
    data = _check(run, config, start, here=False)
    with run.lock():
        preflight.record_data(run, data)
        _write_accelerate_file(run, config, start)
    return run


def resume(path: Path, start: Start) -> int:
    """Continue the run in a run directory. Returns the exit code; raises as `train` does."""
    run = RunDirectory(path)
    config = load_resolved(run.config)
    with stoppable(_NOT_BEGUN):
        from distributed_ft.train import preflight

        data = _check(run, config, start)
        with heeding() as asked, run.lock() as lock:
            preflight.record_data(run, data)
            return _launch_training(run, config, start, lock, asked)


def evaluate(
    path: Path,
    checkpoints: str = "all",
    overrides: Sequence[str] = (),
    watch: bool = False,
    job: str | None = None,
    num_processes: int = 1,
) -> int:
    """Score the base, the base with examples, and the checkpoints of a run, in a process of its own.

    Overrides of `evaluation.…` stay in the run directory, so that `dft report` judges by the same settings. `watch`:
    each checkpoint as it comes, until the run is finished; with the Slurm job that trains, the directory may be made
    later. `num_processes` answer, each with a model of its own; which does not change the scores.
    """
    run = RunDirectory(path)
    if not run.config.exists() and (job is None or overrides):
        raise CheckpointError(f"{path}: not a run directory (no config.json)")
    if overrides:
        with run.evaluation_lock():  # not while another driver judges by the settings that are there
            write_atomic(run.config, resolved_json(with_evaluation(run.config, overrides)))
    following = ("--watch", *(("--train-job", job) if job is not None else ()))
    several = ("--nproc", str(num_processes)) if num_processes > 1 else ()
    arguments = (str(path), *(following if watch else ("--checkpoints", checkpoints)), *several)
    process = Process((sys.executable, "-m", "distributed_ft.evaluation", *arguments), {})
    again = ["dft", "eval", str(path), *(following if watch else ()), *several]
    return run_plan(LaunchPlan((process,), num_ranks=1), run, shlex.join(again))


def total_steps(config: RunConfig, start: Start) -> int:
    """Check all that `train` would refuse, without starting anything; the optimizer steps of the whole run."""
    from distributed_ft.data.order import Order

    run = RunDirectory(Path(config.runs_dir) / config.name)
    _refuse_other_config(run, config)
    return Order.of(config, _check(run, config, start)).total_steps


def check_tasks(config: RunConfig) -> None:
    """Read what the run will be judged by, so that a fault in it is found before training and not after.

    Raises ConfigError or DataError, naming key or file and line.
    """
    from distributed_ft.evaluation.tasks import build_tasks

    if config.evaluation.tasks or config.evaluation.general:
        build_tasks(config.evaluation)


def _refuse_other_config(run: RunDirectory, config: RunConfig) -> None:
    if not run.config.exists():
        if run.checkpoints.exists():
            raise CheckpointError(f"{run.path}: has checkpoints but no config.json; restore it, or choose another name")
        return
    different = differences(load_resolved(run.config), config)
    if different:
        raise ConfigError(
            f"{run.path}: holds a run of another config; choose another name, or delete that directory:\n  "
            + "\n  ".join(different)
        )


@stoppable(_NOT_BEGUN)
def _check(run: RunDirectory, config: RunConfig, start: Start, here: bool = True) -> "PreparedData":
    """Check everything that can be known before ranks exist, and tokenise the data; nothing is written into the run
    directory. `here`: the ranks will run on this machine, so it must have what they need.
    """
    if here:
        _check_launcher(config, start)
    from distributed_ft.train import preflight

    run.newest_complete()  # damaged checkpoints are refused here, before anything is loaded
    check_tasks(config)
    return preflight.check(config, start.num_processes, fresh=not run.checkpoints.exists(), here=here)


def _check_launcher(config: RunConfig, start: Start) -> None:
    if isinstance(config.strategy, LauncherStrategy) and start.accelerate_file is None:
        raise ConfigError(
            "strategy.type: launcher: the strategy is taken from a file of `accelerate launch`; give --launcher "
            "accelerate --accelerate-config FILE, or write strategy: {type: fsdp} (or ddp, deepspeed)"
        )
    if start.launcher == "accelerate" and find_spec("accelerate") is None:
        raise ConfigError("--launcher: accelerate is not installed; `pip install accelerate`, or use torchrun")


@contextmanager
def _made(run: RunDirectory, config: RunConfig, text: str, data: "PreparedData") -> Iterator[IO[str]]:
    """The run directory, locked, with its config and data in it; a new one goes again if it cannot be completed."""
    from distributed_ft.train import preflight

    fresh = not run.path.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    with run.lock() as lock:
        try:
            _refuse_other_config(run, config)  # now that no other start can write one
            preflight.record_data(run, data)
            write_atomic(run.run_yaml, text)
            write_atomic(run.config, resolved_json(config))
        except OSError:
            if fresh:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        yield lock


def _launch_training(run: RunDirectory, config: RunConfig, start: Start, lock: IO[str], asked: list[int]) -> int:
    """`asked`: the list of one who heeds signals already; ranks are told of those in it as soon as they can hear."""
    again = plans.resume_command(run.path, start)
    with tempfile.TemporaryDirectory(prefix="dft-") as folder:
        if start.launcher == "dft":
            rendezvous = Path(folder) / "rendezvous"
            plan = plans.local_plan("distributed_ft.train", (str(run.path),), start.num_processes, rendezvous)
            return run_plan(plan, run, again, lock, requests=asked)
        _write_accelerate_file(run, config, start)
        return run_launcher(plans.launcher_plan(run.path, start, again, Path(folder) / "roll"), run, again, lock, asked)


def by_hand(run: RunDirectory, config: RunConfig, start: Start) -> str:
    """The command that starts a prepared run under a launcher of the user's."""
    if isinstance(config.strategy, LauncherStrategy) and start.accelerate_file is None:
        return f"accelerate launch --config_file FILE -m distributed_ft.train {shlex.quote(str(run.path))}"
    return plans.launcher_command(run.path, start)


def _write_accelerate_file(run: RunDirectory, config: RunConfig, start: Start) -> None:
    if start.launcher == "accelerate" and start.accelerate_file is None and config.strategy.type != "launcher":
        write_json(plans.accelerate_file(run.path), plans.accelerate_config(config, start.num_processes))
