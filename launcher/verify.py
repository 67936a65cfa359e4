"""`dft matrix --verify`: trains the embedded model by every method on every strategy, here, and compares.

One process is the reference; every other world must have its losses and gradient norms, step by step.
"""

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, read_json_lines, write_atomic
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED
from launcher.plan import local_plan
from launcher.processes import run_plan

STEPS = 20
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}  # relative, of each step's loss and gradient norm
METHODS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 8, "alpha": 16},
    "qlora": {"type": "qlora", "rank": 8, "alpha": 16},
}
REFERENCE = "one process"
WORLDS: dict[str, tuple[int, dict[str, Any]]] = {  # processes, strategy; the zero ones get their knobs
    REFERENCE: (1, {"type": "ddp"}),
    "ddp x2": (2, {"type": "ddp"}),
    "fsdp x2": (2, {"type": "fsdp"}),
    "fsdp 2x2": (4, {"type": "fsdp", "dp_replicate": 2, "dp_shard": 2}),
    "zero1 x2": (2, {"type": "deepspeed", "config": {"stage": 1}}),
    "zero2 x2": (2, {"type": "deepspeed", "config": {"stage": 2}}),
    # by default ZeRO-3 leaves tensors of less than 100,000 numbers on every rank: here that would be all of them
    "zero3 x2": (2, {"type": "deepspeed", "config": {"stage": 3, "stage3_param_persistence_threshold": 0}}),
}
Curve = list[tuple[float, float]]  # loss and gradient norm of each step


@dataclass(frozen=True)
class Outcome:
    """One cell. worst: largest relative difference of loss and gradient norm; problem: why there is none."""

    worst: tuple[float, float] | None = None
    problem: str = ""
    holds: bool = True


def verify(steps: int = STEPS) -> int:
    """Print the parity table. Returns 0 when every cell that can run here holds, else 1. Raises KeyboardInterrupt when
    asked to stop: the trainings go with their folder, so nothing is left to go on from."""
    with tempfile.TemporaryDirectory(prefix="dft-verify-") as temporary:
        curves: dict[tuple[str, str, str], Curve] = {}
        problems: dict[str, str] = {}
        for world in WORLDS:
            problems[world] = _missing(world)
            if not problems[world]:
                print(f"verify: {world}: {len(METHODS) * len(TOLERANCES)} trainings of {steps} steps", file=sys.stderr)
                found, problems[world] = _train(Path(temporary), world, steps)
                curves |= found
    cells = {
        (method, dtype, world): _compare(curves, method, dtype, world, problems[world])
        for method in METHODS
        for dtype in TOLERANCES
        for world in WORLDS
    }
    print(table(cells))
    return EXIT_DONE if all(cell.holds for cell in cells.values()) else EXIT_FAULT


def _missing(world: str) -> str:
    """What this machine lacks for it, or the empty string."""
    import torch

    size, strategy = WORLDS[world]
    if torch.cuda.is_available() and torch.cuda.device_count() < size:
        return f"needs {size} GPUs"
    if strategy["type"] == "deepspeed" and find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    return "" if find_spec("bitsandbytes") is not None else "bitsandbytes is not installed"


def _train(folder: Path, world: str, steps: int) -> tuple[dict[tuple[str, str, str], Curve], str]:
    """Train all methods and dtypes in one world, one after the other; the curves, or what went wrong."""
    from distributed_ft.train import preflight

    size, _ = WORLDS[world]
    runs = {}
    for method in METHODS:
        for dtype in TOLERANCES:
            config = _config(folder, f"{method}-{dtype}-{world.replace(' ', '-')}", method, dtype, world, steps)
            run = RunDirectory(Path(config.runs_dir) / config.name)
            preflight.record_data(run, preflight.check(config, size, fresh=True))
            write_atomic(run.config, resolved_json(config))
            runs[method, dtype, world] = run
    first = next(iter(runs.values()))
    arguments = tuple(str(run.path) for run in runs.values())
    plan = local_plan("distributed_ft.train", arguments, size, folder / f"meet-{world.replace(' ', '-')}")
    code = run_plan(plan, first, "dft matrix --verify", quiet=True)
    if code == EXIT_STOPPED or code > 128:
        raise KeyboardInterrupt
    if code != EXIT_DONE:
        print((first.logs / "rank-0.out").read_text()[-2000:], file=sys.stderr)
        return {}, f"ended with exit code {code}"
    return {key: _curve(run) for key, run in runs.items()}, ""


def _curve(run: RunDirectory) -> Curve:
    lines = [line for line in read_json_lines(run.metrics) if "loss" in line]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def _config(folder: Path, name: str, method: str, dtype: str, world: str, steps: int) -> RunConfig:
    from distributed_ft.config.paths import ASSETS

    strategy = dict(WORLDS[world][1])
    if "config" in strategy:
        file = folder / f"{world.split()[0]}.json"
        file.write_text(json.dumps({"zero_optimization": strategy["config"]}))
        strategy["config"] = str(file)
    tree = {
        "name": name,
        "runs_dir": str(folder),
        "model": {"base": str(ASSETS / "base"), "dtype": dtype},
        "method": METHODS[method],
        "data": {"train": str(ASSETS / "tickets" / "train.jsonl"), "seq_len": 128},
        "strategy": strategy,
        "optim": {
            "lr": 5e-4 if method == "full" else 2e-3,
            "weight_decay": 0.1,
            "max_steps": steps,
            "global_batch_size": 8,
            "micro_batch_size": 1,
        },
        "checkpoint": {"every": 10 * steps},
        "evaluation": {"general": []},
        "tracking": [],
    }
    return RunConfig.model_validate_json(json.dumps(tree))


def _compare(curves: dict[tuple[str, str, str], Curve], method: str, dtype: str, world: str, problem: str) -> Outcome:
    if problem:
        return Outcome(problem=problem, holds=problem.startswith(("needs", "deepspeed is", "bitsandbytes is")))
    reference, got = curves.get((method, dtype, REFERENCE)), curves[method, dtype, world]
    if reference is None or len(reference) != len(got):
        return Outcome(problem="no reference" if reference is None else "lost steps", holds=False)
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(got, reference, strict=True)]
    worst = tuple(max(_difference(*step[i]) for step in pairs) for i in (0, 1))
    return Outcome((worst[0], worst[1]), holds=max(worst) <= TOLERANCES[dtype])


def _difference(a: float | None, b: float | None) -> float:
    """Relative; infinite where a step was skipped, whose loss is null."""
    return math.inf if a is None or b is None else abs(a - b) / abs(b)


def table(cells: dict[tuple[str, str, str], Outcome]) -> str:
    """The cells in aligned columns: largest relative difference of losses and of gradient norms from one process."""
    notes: list[str] = []
    rows = [(method, dtype) for method in METHODS for dtype in TOLERANCES]
    lines = [("method", "dtype", *WORLDS)]
    lines += [(*row, *(_shown(cells[(*row, world)], world, notes) for world in WORLDS)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    held = sum(cell.holds and cell.worst is not None for cell in cells.values())
    return "\n".join(
        [
            "largest relative difference from one process over all steps: loss / gradient norm",
            *body,
            "",
            f"required: {', '.join(f'{dtype} {limit:g}' for dtype, limit in TOLERANCES.items())}; "
            f"{held} of {len(cells)} cells hold",
            *(f"{number}. {note}" for number, note in enumerate(notes, 1)),
        ]
    )


def _shown(cell: Outcome, world: str, notes: list[str]) -> str:
    if cell.worst is None:
        if cell.problem not in notes:
            notes.append(cell.problem)
        return f"{'not run' if cell.holds else 'FAILED'} ({notes.index(cell.problem) + 1})"
    if world == REFERENCE:
        return "reference"
    return f"{cell.worst[0]:.1e} / {cell.worst[1]:.1e}" + ("" if cell.holds else " FAILED")
