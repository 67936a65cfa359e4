"""`python -m distributed_ft.train RUN_DIR`: what every launcher starts, once a process.

Several run directories are trained one after the other. A run directory must exist (`dft train` makes it; `dft train
--prepare-only` makes it and stops there). Data is ready before the process group is formed.
"""

import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_ft import beats, roll
from distributed_ft.beats import Pulse
from distributed_ft.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_LOST,
    EXIT_STOPPED,
    EXIT_USER,
    CheckpointError,
    FtError,
    Stopped,
    brief,
    disk_problem,
)
from distributed_ft.train.signals import StopRequest
from distributed_ft.train.startup import Startup

if TYPE_CHECKING:
    from distributed_ft.artifacts import RunDirectory
    from distributed_ft.config.schema import RunConfig
    from distributed_ft.data.store import PreparedData
    from distributed_ft.parallel.world import World

log = logging.getLogger("distributed_ft")


def main() -> int:
    """Exit codes: see `distributed_ft.errors`."""
    if len(sys.argv) < 2:
        print("usage: python -m distributed_ft.train RUN_DIR…", file=sys.stderr)
        return EXIT_USER
    gc.disable()  # of what is imported nothing is garbage, and to look for it takes a second
    directories = [Path(argument) for argument in sys.argv[1:]]
    rank = int(os.environ.get("RANK", "0"))
    stop = StopRequest().listen(lambda: _end_now(rank, directories[0]), lambda: _count(rank))  # before heavy imports
    roll.sign_in(rank)
    Pulse(rank).beat(0, "loading")
    try:
        train(directories, rank, stop)
    except Stopped as stopped:
        return _end(rank, str(stopped), EXIT_STOPPED)
    except FtError as error:
        return _end(rank, f"dft: error: {error}", EXIT_USER)
    except Exception as error:
        message = disk_problem(error) if isinstance(error, OSError) else None
        if message is not None:
            return _end(rank, f"dft: error: {message}", EXIT_USER)
        return _fail(rank, error, stop)
    return EXIT_DONE


def _fail(rank: int, error: Exception, stop: StopRequest) -> int:
    """The code of a rank with an error that is not the user's; it may be the consequence of another rank's end."""
    from distributed_ft.parallel.world import lost_peers

    if lost_peers(error):
        log.warning("rank %d lost its peers: %s", rank, brief(error))
        return EXIT_STOPPED if stop.requested else EXIT_LOST  # another heard the request first, and left
    beats.note(rank, f"{type(error).__name__}: {brief(error)}")
    log.error("rank %d failed", rank, exc_info=error)
    return EXIT_FAULT


def _count(rank: int) -> None:
    """Whoever watches the ranks asks who holds the others up."""
    from distributed_ft.parallel.world import collectives_entered

    beats.count(rank, collectives_entered())


def _end_now(rank: int, directory: Path) -> None:
    """Asked to stop before the first step: leave, in whatever call the main thread is."""
    from distributed_ft.artifacts import resume_command

    again = resume_command(directory, int(os.environ.get("WORLD_SIZE", "1")))
    message = f"stopped on request before the first step; continue with: {again}"
    log.info("ends with exit code %d: %s", EXIT_STOPPED, message)
    if rank == 0:
        os.write(2, f"{message}\n".encode())  # not by sys.stderr, whose lock the main thread may hold
    code = roll.sign_out(rank, EXIT_STOPPED)
    logging.shutdown()
    os._exit(code)


def train(paths: Sequence[Path], rank: int, stop: StopRequest) -> None:
    """Train the runs in `paths` on the processes that the launcher started."""
    for path in paths:
        if not (path / "config.json").is_file():  # before logs would make a directory of a mistyped name
            raise CheckpointError(f"{path}: not a run directory (no config.json); `dft train run.yaml` makes one")
    _log_to(paths[0], rank)
    startup = Startup()
    from distributed_ft import imports
    from distributed_ft.artifacts import RunDirectory
    from distributed_ft.config.launched import settled
    from distributed_ft.config.load import load_resolved

    runs = [(RunDirectory(path), settled(load_resolved(path / "config.json"), os.environ)) for path in paths]
    imports.leave_out([config for _, config in runs], "scipy")
    from distributed_ft.model.load import quiet_libraries
    from distributed_ft.parallel.world import form_world, rank_from_environment
    from distributed_ft.train import environment, preflight

    quiet_libraries()
    imports.all_imported()
    startup.done("imports")
    prepared = []
    for directory, config in runs:
        preflight.check_strategy(config, rank_from_environment()[1])
        environment.refuse_other_state(directory, config)
        prepared.append((directory, config, preflight.data_for(config, directory)))
    startup.done("data")
    asked_for = os.environ.get("DFT_WORLD_SIZE")
    world = form_world(int(asked_for) if asked_for else None)
    startup.done("processes")
    for directory, config, data in prepared:
        _log_to(directory.path, rank)
        _train_one(directory, config, data, world, stop, startup)
        startup.another()


def _train_one(
    directory: "RunDirectory",
    config: "RunConfig",
    data: "PreparedData",
    world: "World",
    stop: StopRequest,
    startup: Startup,
) -> None:
    """One run. No model stays on return, as there is no memory for two. (DeepSpeed keeps what it was given.)"""
    from distributed_ft.train.fit import fit
    from distributed_ft.train.run import open_run
    from distributed_ft.train.whereabouts import Whereabouts

    gc.collect()  # the model before: sharded ones lie in cycles
    with _only_training(directory, world):
        where = Whereabouts(directory, world)
        try:
            run = open_run(config, directory, data, world, stop, where)
            place = (world.rank, world.size, world.device)
            log.info("rank %d of %d on %s: step %d of %d", *place, run.state.step, run.total_steps)
            startup.done("model")
            if run.metrics is not None:
                run.metrics.ready(startup)
            try:
                fit(run)
            finally:
                if run.metrics is not None:
                    run.metrics.close()
        except Stopped:
            raise
        except Exception:
            where.enter("failed")
            raise
        finally:
            where.close()


@contextmanager
def _only_training(directory: "RunDirectory", world: "World") -> Iterator[None]:
    """Rank 0 holds the run directory, unless our launcher does so for it. Raises CheckpointError on every rank."""
    with ExitStack() as held:
        problem: FtError | None = None
        if world.is_main and "DFT_LOCK_FD" not in os.environ:
            try:
                held.enter_context(directory.lock())
            except FtError as error:
                problem = error
        problem = world.from_main(problem)
        if problem is not None:
            raise problem
        yield


def _log_to(directory: Path, rank: int) -> None:
    """Everything that is logged, and the stacks of a crash, go to this rank's own file; errors to stderr too."""
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"rank-{rank}.log"
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    console = logging.StreamHandler()
    console.setLevel(logging.ERROR)
    root.handlers[:] = [handler, console]
    logging.captureWarnings(True)
    stacks = path.open("a")
    faulthandler.enable(stacks)
    if beats.VARIABLE in os.environ:
        faulthandler.register(signal.SIGQUIT, stacks, chain=True)


def _end(rank: int, message: str, code: int) -> int:
    """One message for the user, from rank 0; the others keep theirs in their log."""
    log.info("ends with exit code %d: %s", code, message)
    if rank == 0:
        print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    code = main()
    from distributed_ft.parallel.world import leave  # not before `main` listens to signals: it imports torch

    leave(roll.sign_out(int(os.environ.get("RANK", "0")), code))
