"""Opening a prepared run on a rank, and stopping it after so many steps."""

from pathlib import Path

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.schema import RunConfig
from distributed_ft.parallel.world import World
from distributed_ft.train.preflight import data_for
from distributed_ft.train.run import Run, open_run
from distributed_ft.train.signals import StopRequest


class StopAfter(StopRequest):
    """A request that comes after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps + 1  # the loop asks once before each step

    @property  # type: ignore[override]
    def requested(self) -> bool:
        self.left -= 1
        return self.left == 0


def open_here(world: World, config: RunConfig, stop: StopRequest | None = None) -> Run:
    """The run that `prepare_run` made of `config`, on this rank."""
    directory = RunDirectory(Path(config.runs_dir) / config.name)
    return open_run(config, directory, data_for(config, directory), world, stop or StopRequest())
