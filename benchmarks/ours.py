"""Worker: `distributed_ft.train.fit` as `dft train` runs it, with a stopwatch among its trackers.

Everything a user gets is on: batches built step by step, metrics.jsonl, TensorBoard, the words that ranks exchange.
Arguments: CASE OUT. Every rank reports; rank 0 has the times.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.harness import memory_bytes, report
from distributed_ft.artifacts import RunDirectory
from distributed_ft.model.load import quiet_libraries
from distributed_ft.model.shapes import num_parameters
from distributed_ft.parallel.world import form_world, leave, rank_from_environment
from distributed_ft.train.fit import fit
from distributed_ft.train.run import open_run
from distributed_ft.train.signals import StopRequest


class Stopwatch:
    """A tracker that comes last: notes when each step is done, its recording included, and what it was."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.seconds: list[float] = []  # of each step
        self.tokens: list[int] = []  # of each step's global batch, supervised or not
        self.saves: list[dict[str, float]] = []  # seconds of each checkpoint

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if "train/loss" in values:
            self.losses.append(values["train/loss"])
            self.grad_norms.append(values["train/grad_norm"])
            self.seconds.append(values["time/total"])
            self.tokens.append(round(values["speed/tokens_per_second"] * values["time/total"]))
            self.ends.append(time.perf_counter())
            self.cpu_ends.append(time.process_time())
        if "time/checkpoint" in values:
            self.saves.append({"blocked": values["time/checkpoint_blocked"], "whole": values["time/checkpoint"]})

    def text(self, step: int, tag: str, text: str) -> None: ...

    def settings(self, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def gpu_peaks(device: torch.device) -> dict[str, int] | None:
    """Most bytes of GPU memory in tensors, and in torch's hands, since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    peaks = {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }
    torch.cuda.empty_cache()  # what loading reserved and does not need is not training's
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


def main() -> None:
    case, out = Case(Path(sys.argv[1])), Path(sys.argv[2])
    quiet_libraries()
    data = case.data  # before ranks meet, as in `distributed_ft.train`
    stopwatch = Stopwatch()
    world = form_world(expected_size=rank_from_environment()[1])
    begin = time.perf_counter()
    run = open_run(case.config, RunDirectory(out / "run"), data, world, StopRequest())
    load_seconds, trainable_and_total = time.perf_counter() - begin, num_parameters(run.token_loss)
    gpu_loading = gpu_peaks(world.device)
    if run.metrics is not None:
        run.metrics.trackers = (*run.metrics.trackers, stopwatch)
    resident = memory_bytes("VmRSS")
    fit(run)
    if run.metrics is not None:
        run.metrics.close()
    report(
        out,
        {
            "ends": stopwatch.ends,
            "cpu_ends": stopwatch.cpu_ends,
            "losses": stopwatch.losses,
            "grad_norms": stopwatch.grad_norms,
            "seconds": stopwatch.seconds,
            "tokens": stopwatch.tokens,
            "saves": stopwatch.saves,
            "load_seconds": load_seconds,
            "parameters": trainable_and_total,
            "gpu_loading": gpu_loading,
            "gpu_training": gpu_peaks(world.device),
            "resident_before": resident,
            "resident_peak": memory_bytes("VmHWM"),
        },
    )


if __name__ == "__main__":
    main()
    leave(0)
