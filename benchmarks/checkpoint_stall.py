"""What training waits for a checkpoint: `checkpoint: {async: true}` against `false`, in one run of this module.

    python -m benchmarks.checkpoint_stall [--quick] [--repeats 5] [--saves 3] [--out FILE]

Two processes, FSDP, full fine-tuning of the larger base (fp32; a save is its weights, and parameters and two moments
for resume), a checkpoint every STEPS_BETWEEN steps. Fresh processes async, sync, async, sync, …; both must give the
very same losses.

Reported: seconds that training waited for a save, and until the save was published (medians over all saves of all
repeats but each run's last, which has no training to hide behind); their ratio, async over sync; the same of the wall
seconds of the whole loop from the first step's end. The disk and the processors are shared by training and writing, so
a save in the background takes longer than one that training waits for.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.cases import Case, make_case
from benchmarks.harness import Measurement
from distributed_ft.config.load import resolved_json

PROCESSES = 2
STEPS_BETWEEN = 8
REQUIRED_RATIO = 0.5
ARMS = {"async": True, "sync": False}


def make(folder: Path, arm: str, saves: int) -> Case:
    """A run that saves so often, and once more at its end."""
    steps = STEPS_BETWEEN * saves + STEPS_BETWEEN // 2
    case = make_case(folder, arm, "larger", "full", "fsdp", PROCESSES, steps)
    changed = case.config.checkpoint.model_copy(update={"every": STEPS_BETWEEN, "in_background": ARMS[arm]})
    config = case.config.model_copy(update={"checkpoint": changed})
    (case.directory / "config.json").write_text(resolved_json(config))
    return case


def measure(folder: Path, repeats: int, saves: int) -> dict[str, Any]:
    """See the module's docstring for what is reported. Raises AssertionError when the arms train different runs."""
    cases = {arm: make(folder, arm, saves) for arm in ARMS}
    found = harness.interleaved({arm: partial(_run, case) for arm, case in cases.items()}, repeats)
    runs = {arm: [ranks[0] for ranks in measured] for arm, measured in found.items()}
    losses = {tuple(run["losses"]) for measured in runs.values() for run in measured}
    assert len(losses) == 1, "saving in the background changed a loss"
    result: dict[str, Any] = {"seconds": {}}
    for arm, measured in runs.items():
        middle = [save for run in measured for save in run["saves"][:-1]]
        assert len(middle) == repeats * saves
        result["seconds"][arm] = {
            "blocked": harness.spread([save["blocked"] for save in middle]),
            "whole": harness.spread([save["whole"] for save in middle]),
            "last_blocked": harness.spread([run["saves"][-1]["blocked"] for run in measured]),
            "loop": harness.spread([run["ends"][-1] - run["ends"][0] for run in measured]),
            "step": harness.spread([statistics.median(_steps(run)) for run in measured]),
        }
    for what in ("blocked", "loop"):
        result[f"ratio_{what}"] = result["seconds"]["async"][what]["median"] / result["seconds"]["sync"][what]["median"]
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_stall", description="What a save costs.")
    parser.add_argument("--quick", action="store_true", help="1 repeat of 2 saves; no result file unless --out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--saves", type=int, default=3, help="saves of a repeat, beside the last")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    repeats, saves = (1, 2) if options.quick else (options.repeats, options.saves)
    out = options.out or (None if options.quick else harness.RESULTS / "checkpoint_stall.json")
    result: dict[str, Any] = {"benchmark": "checkpoint_stall", "environment": harness.environment()}
    result["settings"] = {
        "repeats": repeats,
        "saves": saves,
        "steps_between": STEPS_BETWEEN,
        "processes": PROCESSES,
        "case": "larger-full, fsdp",
    }
    result["required_ratio"] = REQUIRED_RATIO
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as folder:
        result |= measure(Path(folder), repeats, saves)
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = [
        [arm, *(harness.milliseconds(result["seconds"][arm][what]) for what in ("blocked", "whole", "step"))]
        for arm in ARMS
    ]
    table = harness.table(["arm", "waited ms/save", "until published ms", "step ms"], rows)
    return f"{table}\nasync / sync: waited {result['ratio_blocked']:.3f}, whole loop {result['ratio_loop']:.3f}"


def _run(case: Case) -> list[Measurement]:
    return harness.run_fresh("benchmarks.ours", (str(case.directory),), PROCESSES)


def _steps(run: Measurement) -> list[float]:
    ends = run["ends"]
    return [after - before for before, after in pairwise(ends)]


if __name__ == "__main__":
    sys.exit(main())
