"""A place to try a run in: the real commands in a throw-away directory under its runs_dir, where there is room."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed_ft.config.schema import RunConfig


@contextmanager
def throw_away(config: RunConfig, purpose: str) -> Iterator[Path]:
    """A new directory `runs_dir/.purpose-…` that goes with all that is in it, however the trial ends."""
    runs = Path(config.runs_dir)
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{purpose}-", dir=runs))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
