"""Where this training is, told to whoever follows it: `progress.json` by rank 0, a beat by every rank."""

import contextlib
import time
from datetime import UTC, datetime
from typing import Literal

from distributed_ft.artifacts import RunDirectory, job_number, write_json
from distributed_ft.beats import Pulse
from distributed_ft.parallel.world import World
from distributed_ft.records import Progress

PROGRESS_SECONDS = 2.0  # between two writings of progress.json within a phase
Phase = Literal["loading", "training", "validating", "saving", "finished", "stopped", "failed"]


class Whereabouts:
    """Phase and step of one run on this rank."""

    def __init__(self, run: RunDirectory, world: World) -> None:
        self._run, self._world, self._pulse = run, world, Pulse(world.rank)
        self._phase: Phase = "loading"
        self._reason: str | None = None
        self._step = 0
        self._total_steps: int | None = None
        self._loss: float | None = None
        self._tokens_per_second: float | None = None
        self._eta_seconds: float | None = None
        self._start = (0, 0.0)  # step and monotonic time at which the training began
        self._written = 0.0
        self.enter("loading")

    def begin(self, step: int, total_steps: int) -> None:
        """Training begins, after `step` completed steps of so many."""
        self._step, self._total_steps, self._start = step, total_steps, (step, time.monotonic())
        self.enter("training")

    def enter(self, phase: Phase, reason: str | None = None) -> None:
        """Another phase begins; `progress.json` says so at once. `reason`: why it is finished before its last step."""
        self._phase, self._reason = phase, reason
        self.alive()
        if self._world.is_main:
            self._write()

    def alive(self) -> None:
        """Something was done within a phase that may take long."""
        self._pulse.beat(self._step, self._phase)

    def stepped(self, step: int, loss: float | None, tokens_per_second: float) -> None:
        """A step is completed; loss: None where it is not finite."""
        self._step, self._loss, self._tokens_per_second = step, loss, tokens_per_second
        self.alive()
        begin, since = self._start
        if self._total_steps is not None:
            self._eta_seconds = (time.monotonic() - since) / (step - begin) * (self._total_steps - step)
        if self._world.is_main and time.monotonic() - self._written > PROGRESS_SECONDS:
            self._write()

    def close(self) -> None:
        """The run is over on this rank."""
        self._pulse.close()

    def _write(self) -> None:
        self._written = time.monotonic()
        progress = Progress(
            schema=1,
            phase=self._phase,
            step=self._step,
            total_steps=self._total_steps,
            loss=self._loss,
            tokens_per_second=self._tokens_per_second,
            eta_seconds=self._eta_seconds,
            world_size=self._world.size,
            job=job_number(),
            reason=self._reason,
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with contextlib.suppress(OSError):  # what is only told must not end the training (a full disk)
            write_json(self._run.progress, progress.model_dump(by_alias=True))
