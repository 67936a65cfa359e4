"""Being told that more steps do not help: by the eval driver that follows the run (`dft eval --watch`), on disk."""

from distributed_ft.artifacts import RunDirectory
from distributed_ft.records import StopVerdict


class EarlyStop:
    """The driver's verdict as rank 0 sees it. It asks the disk once a step, and reads the file when there is another.

    A verdict on checkpoints that this training has still to make is of an earlier one: it is not obeyed.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen: tuple[int, int] | None = None
        self._verdict: StopVerdict | None = None

    def reason(self, step: int) -> str | None:
        """Why not to go on after so many completed steps; None: go on."""
        try:
            there = self._run.stop_verdict.stat()
        except OSError:
            return None
        if (there.st_ino, there.st_mtime_ns) != self._seen:
            self._seen = (there.st_ino, there.st_mtime_ns)
            self._verdict = self._run.read_stop_verdict()
        verdict = self._verdict
        return verdict.reason if verdict is not None and verdict.stop and verdict.step <= step else None
