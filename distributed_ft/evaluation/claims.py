"""Checkpoints that wait to be scored, kept from being removed before they are.

The trainer removes checkpoints (`checkpoint.keep`), and scoring may be slower than training. So whatever is published
is claimed at once: hard links of `model/` and of the manifest under `evaluation/.claimed/step-…/`, copies where there
are no hard links. They cost no space while the checkpoint is there, need nothing of the trainer, and stay after a kill.
"""

import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.errors import CheckpointError

POLL_SECONDS = 1.0
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)


def claimed(run: RunDirectory) -> list[Checkpoint]:
    """The claims, oldest checkpoint first; only `model/` is in them."""
    found = [Checkpoint(path) for path in _folder(run).glob("step-*")]
    return sorted(found, key=lambda claim: claim.step)


def release(claim: Checkpoint) -> None:
    """It is scored."""
    shutil.rmtree(claim.path, ignore_errors=True)


class Claims:
    """Takes each checkpoint once, when it is published, or published anew."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._turn = threading.Lock()
        self._taken: set[tuple[str, int, int]] = set()
        self._problem: OSError | None = None
        for leftover in _folder(run).glob(".step-*"):  # of a driver that was killed
            shutil.rmtree(leftover, ignore_errors=True)

    def take(self) -> None:
        """Claim what is new. Raises OSError (disk full, …)."""
        with self._turn:
            for checkpoint in self._run.all_checkpoints():
                identity = _identity(checkpoint)
                if identity is not None and identity not in self._taken and _claim(self._run, checkpoint):
                    self._taken.add(identity)

    def waiting(self) -> list[Checkpoint]:
        """What is claimed and not released, oldest first. Raises OSError, also what `take` raised in the thread."""
        if self._problem is not None:
            raise self._problem
        self.take()
        return claimed(self._run)

    def poll(self, end: threading.Event) -> None:
        """What the thread of `claiming` does."""
        while not end.wait(POLL_SECONDS):
            try:
                self.take()
            except OSError as error:
                self._problem = error
                return


@contextmanager
def claiming(run: RunDirectory) -> Iterator[Claims]:
    """Claim what is published from now on, in a thread: the driver may be scoring for hours."""
    claims, end = Claims(run), threading.Event()
    claims.take()
    thread = threading.Thread(target=claims.poll, args=(end,), name="claims", daemon=True)
    thread.start()
    try:
        yield claims
    finally:
        end.set()
        thread.join()


def _folder(run: RunDirectory) -> Path:
    return run.evaluation / ".claimed"


def _identity(checkpoint: Checkpoint) -> tuple[str, int, int] | None:
    """Of a published checkpoint, without reading it; None for any other."""
    try:
        manifest = (checkpoint.path / "manifest.json").stat()
    except FileNotFoundError:
        return None
    return checkpoint.name, manifest.st_ino, manifest.st_mtime_ns


def _claim(run: RunDirectory, checkpoint: Checkpoint) -> bool:
    """False when it was removed meanwhile."""
    partial = _folder(run) / f".{checkpoint.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        names = [name for name in checkpoint.manifest().files if name.startswith("model/")]
        for name in [*names, "manifest.json"]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _link(checkpoint.path / name, partial / name)
    except (CheckpointError, FileNotFoundError):
        shutil.rmtree(partial, ignore_errors=True)
        if checkpoint.published:  # damaged, and so it stays
            print(f"{checkpoint.name}: not scored: {checkpoint.verify('model/')}", file=sys.stderr, flush=True)
            return True
        return False
    final = _folder(run) / checkpoint.name
    shutil.rmtree(final, ignore_errors=True)  # of the same step, before a kill or trained anew
    partial.rename(final)
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)
