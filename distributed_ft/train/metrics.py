"""What a run says of itself while it trains: `metrics.jsonl`, the trackers, a progress line."""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distributed_ft.artifacts import RunDirectory, append_json_line, read_json_lines, write_atomic
from distributed_ft.train.startup import Startup
from distributed_ft.train.trackers import Tracker

PROGRESS_SECONDS = 10.0  # between progress lines where stderr is a file


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. tokens: supervised, global; input_tokens: all tokens of the global batch; seconds: wall."""

    step: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    input_tokens: int
    samples: str
    skipped: bool
    seconds: float
    parts: dict[str, float]
    world_size: int


class Metrics:
    """Rank 0's writer. A resumed run continues `metrics.jsonl` with no step twice."""

    def __init__(
        self,
        run: RunDirectory,
        trackers: Sequence[Tracker],
        start_step: int,
        total_steps: int,
        validation_owed: bool = False,
    ) -> None:
        self.run = run
        self.trackers = trackers
        self.total_steps = total_steps
        self.flops_per_token: float | None = None  # set where the device's peak is known
        self.peak_flops: float | None = None
        self._start_step = start_step
        self._began = time.monotonic()
        self._last_line = 0.0
        self._checkpoint_seconds: dict[str, float] = {}  # of a checkpoint that was published since the last step
        self._forget_after(start_step, validation_owed)

    def _forget_after(self, step: int, validation_owed: bool) -> None:
        """What will be written anew, among it the validation after `step` where it is owed."""
        if self.run.metrics.exists():
            kept = [r for r in read_json_lines(self.run.metrics) if r["step"] <= step]
            kept = [r for r in kept if not (validation_owed and r["step"] == step and "val_loss" in r)]
            write_atomic(self.run.metrics, "".join(json.dumps(r) + "\n" for r in kept))

    def ready(self, startup: Startup) -> None:
        """Record how long the start took, by part; the first step comes next."""
        parts = {**startup.parts, "total": sum(startup.parts.values())}
        self._scalars(self._start_step, {f"startup/{part}": seconds for part, seconds in parts.items()})
        self.say(startup.line())

    def step(self, record: StepRecord, memory_bytes: int | None) -> None:
        """Record a finished step; memory_bytes: this device's peak, None on a CPU."""
        line: dict[str, Any] = {
            "step": record.step,
            "epoch": round(record.epoch, 6),
            "loss": _finite(record.loss),
            "grad_norm": _finite(record.grad_norm),
            "lr": record.lr,
            "tokens": record.tokens,
            "samples": record.samples,
            "step_seconds": round(record.seconds, 6),
            "world_size": record.world_size,  # a resumed run may have another one, and its cost depends on it
        }
        if record.skipped:
            line["skipped"] = True
        line |= {key: round(seconds, 6) for key, seconds in self._checkpoint_seconds.items()}
        self._checkpoint_seconds = {}
        append_json_line(self.run.metrics, line)
        speed = record.input_tokens / record.seconds
        scalars = {
            "train/loss": record.loss,
            "train/grad_norm": record.grad_norm,
            "train/lr": record.lr,
            "train/epoch": record.epoch,
            "data/supervised_share": record.tokens / max(1, record.input_tokens),
            "speed/tokens_per_second": speed,
            "speed/supervised_tokens_per_second": record.tokens / record.seconds,
            "time/total": record.seconds,  # `time/step` is the part that the optimizer takes
            **{f"time/{part}": seconds for part, seconds in record.parts.items()},
        }
        if memory_bytes is not None:
            scalars["device/peak_memory_gib"] = memory_bytes / 2**30
        if self.flops_per_token is not None and self.peak_flops is not None:
            scalars["speed/mfu"] = self.flops_per_token * speed / self.peak_flops
        self._scalars(record.step, scalars)
        self._progress(record, speed)

    def validation(self, step: int, loss: float, seconds: float) -> None:
        """Record a validation loss (mean over the supervised tokens of the whole validation set)."""
        append_json_line(self.run.metrics, {"step": step, "val_loss": _finite(loss), "seconds": round(seconds, 6)})
        self._scalars(step, {"validation/loss": loss, "time/validation": seconds})
        self.say(f"step {step}/{self.total_steps}  validation loss {loss:.4f}")

    def checkpoint(self, step: int, blocked: float, seconds: float) -> None:
        """Record a published checkpoint: the seconds that training waited for it, and until it was on disk."""
        self._checkpoint_seconds = {"checkpoint_blocked_seconds": blocked, "checkpoint_seconds": seconds}
        self._scalars(step, {"time/checkpoint_blocked": blocked, "time/checkpoint": seconds})
        self.say(f"step {step}/{self.total_steps}  checkpoint saved ({seconds:.1f} s, training waited {blocked:.1f} s)")

    def text(self, step: int, tag: str, text: str) -> None:
        for tracker in self.trackers:
            tracker.text(step, tag, text)

    def settings(self, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.settings(values)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.scalars(step, values)

    def _progress(self, record: StepRecord, speed: float) -> None:
        now = time.monotonic()
        interactive = sys.stderr.isatty()
        due = 0.2 if interactive else PROGRESS_SECONDS
        if now - self._last_line < due and record.step not in (self._start_step + 1, self.total_steps):
            return
        self._last_line = now
        done = record.step - self._start_step
        left = (now - self._began) / done * (self.total_steps - record.step)
        line = (
            f"step {record.step}/{self.total_steps}  loss {record.loss:.4f}  grad {record.grad_norm:.3f}  "
            f"lr {record.lr:.2e}  {speed:,.0f} tokens/s  ETA {_clock(left)}"
        )
        last = record.step == self.total_steps
        print(f"\r\033[K{line}" if interactive else line, end="" if interactive and not last else "\n", file=sys.stderr)
        sys.stderr.flush()

    def say(self, line: str) -> None:
        """A line on this terminal, clear of the progress line."""
        start = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{start}{line}", file=sys.stderr, flush=True)


def _finite(value: float) -> float | None:
    """JSON knows no NaN and no infinity: null stands for them."""
    return value if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
