"""The run directory while somebody else writes in it."""

import shutil
from pathlib import Path

import pytest

from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.errors import CheckpointError
from distributed_ft.publishing import publish, staging


def save(run: RunDirectory, step: int) -> None:
    partial = staging(run, step)
    (partial / "weights").write_text(str(step))
    publish(run, partial, step, world_size=1)


class Live(RunDirectory):
    """A trainer saves step 2 and prunes step 1 right after the first listing."""

    listings = 0

    def all_checkpoints(self) -> list[Checkpoint]:
        found = super().all_checkpoints()
        self.listings += 1
        if self.listings == 1:
            save(self, 2)
            shutil.rmtree(found[0].path)
        return found


def test_checkpoints_that_a_live_trainer_prunes_are_looked_for_again(tmp_path: Path) -> None:
    run = Live(tmp_path)
    save(run, 1)
    newest = run.newest_complete()
    assert newest is not None
    assert newest.step == 2


def test_damaged_checkpoints_are_said_once_each(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        save(run, step)
        (run.checkpoints / f"step-{step:08d}" / "weights").unlink()
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        run.newest_complete()
