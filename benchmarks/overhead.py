"""What our loop costs: its time per step over that of a bare hand-written loop on the very same batches.

    python -m benchmarks.overhead [--quick] [--repeats 5] [--steps 20] [--cases shipped-lora …] [--out FILE]

One process, the demo's data and settings (fp32, sequences of 512, 4 a step in 2 micro-batches), the embedded base and
a larger one, LoRA and full. Before anything is timed, losses and gradient norms of the first steps must agree to
TOLERANCE. Then fresh processes ours, bare, ours, bare, …; the first WARMUP steps of each are not counted.

Reported per case: time of a step in each arm (over repeats: median, min, max of a repeat's median step); the ratio of
the medians; the ratio of each pair of neighbours; and the ratio of mean steps, in which rare slow steps (a flush of the
event file) count too. `ratio_of_cpu` compares processor seconds (all threads) instead of wall seconds: a busy machine
disturbs it less. Required: ratio of the medians <= 1.05.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks import harness
from benchmarks.cases import Base, Case, Method, make_case
from benchmarks.harness import Measurement

REQUIRED_RATIO = 1.05
TOLERANCE = 1e-5  # relative, of loss and gradient norm
PARITY_STEPS = 4
WARMUP = 5
CASES: dict[str, tuple[Base, Method]] = {
    f"{base}-{method}": (base, method) for base in get_args(Base) for method in get_args(Method)
}
DEFAULT_CASES = ["shipped-lora", "shipped-full", "larger-lora"]


def assert_parity(folder: Path, name: str) -> dict[str, Any]:
    """Run both loops for PARITY_STEPS. Raises AssertionError when a loss or gradient norm differs."""
    base, method = CASES[name]
    case = make_case(folder, f"parity-{name}", base, method, "ddp", 1, PARITY_STEPS)
    with ThreadPoolExecutor(2) as both:  # nothing is timed here
        (ours,), (bare,) = both.map(_run, ("ours", "bare"), (case, case))
    worst = 0.0
    for key in ("losses", "grad_norms"):
        assert len(ours[key]) == len(bare[key]) == PARITY_STEPS
        for step, (a, b) in enumerate(zip(ours[key], bare[key], strict=True)):
            difference = abs(a - b) / abs(b)
            assert difference <= TOLERANCE, f"{name}: {key} of step {step}: ours {a!r}, bare {b!r}"
            worst = max(worst, difference)
    return {"steps": PARITY_STEPS, "losses": ours["losses"], "grad_norms": ours["grad_norms"], "worst": worst}


def measure(folder: Path, name: str, repeats: int, steps: int) -> dict[str, Any]:
    """Time a case; see the module's docstring for what is reported."""
    base, method = CASES[name]
    case = make_case(folder, name, base, method, "ddp", 1, WARMUP + steps)
    arms = {arm: partial(_run, arm, case) for arm in ("ours", "bare")}
    runs = harness.interleaved(arms, repeats)
    times = {arm: [_step_seconds(ranks[0]) for ranks in measured] for arm, measured in runs.items()}
    medians = {arm: [statistics.median(seconds) for seconds in repeated] for arm, repeated in times.items()}
    means = {arm: [statistics.fmean(seconds) for seconds in repeated] for arm, repeated in times.items()}
    cpu = {arm: _median_over_repeats(measured, "cpu_ends") for arm, measured in runs.items()}
    peaks = {arm: [ranks[0]["resident_peak"] for ranks in measured] for arm, measured in runs.items()}
    pairs = [ours / bare for ours, bare in zip(medians["ours"], medians["bare"], strict=True)]
    return {
        "step_seconds": {arm: harness.spread(values) for arm, values in medians.items()},
        "ratio_of_medians": statistics.median(medians["ours"]) / statistics.median(medians["bare"]),
        "ratio_of_pairs": {**harness.spread(pairs), "all": pairs},
        "ratio_of_means": statistics.median(means["ours"]) / statistics.median(means["bare"]),
        "ratio_of_cpu": cpu["ours"] / cpu["bare"],
        "resident_peak_bytes": {arm: harness.spread(values) for arm, values in peaks.items()},
        "all_step_seconds": {arm: [[round(s, 6) for s in one] for one in repeated] for arm, repeated in times.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="Our loop against a bare one.")
    parser.add_argument("--quick", action="store_true", help="2 repeats of 10 steps; no result file unless --out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a repeat")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    repeats, steps = (2, 10) if options.quick else (options.repeats, options.steps)
    out = options.out or (None if options.quick else harness.RESULTS / "overhead.json")
    result: dict[str, Any] = {"benchmark": "overhead", "environment": harness.environment()}
    result["settings"] = {"repeats": repeats, "warmup_steps": WARMUP, "timed_steps": steps, "processes": 1}
    result["required_ratio"] = REQUIRED_RATIO
    result["cases"] = {}
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        folder = Path(temporary)
        parity = {name: assert_parity(folder, name) for name in options.cases}
        print("first losses and gradient norms agree in every case", file=sys.stderr)
        for name in options.cases:
            print(name, file=sys.stderr)
            result["cases"][name] = {"parity": parity[name], **measure(folder, name, repeats, steps)}
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = []
    for name, case in result["cases"].items():
        seconds, pairs, ratio = case["step_seconds"], case["ratio_of_pairs"], case["ratio_of_medians"]
        rows.append(
            [
                name,
                harness.milliseconds(seconds["ours"]),
                harness.milliseconds(seconds["bare"]),
                f"{ratio:.3f}",
                f"{pairs['median']:.3f} ({pairs['min']:.3f}-{pairs['max']:.3f})",
                f"{case['ratio_of_means']:.3f}",
                f"{case['ratio_of_cpu']:.3f}",
                "yes" if ratio <= result["required_ratio"] else "NO",
            ]
        )
    required = f"<= {result['required_ratio']}"
    header = ["case", "ours ms/step", "bare ms/step", "ratio", "of pairs", "of means", "of CPU time", required]
    return harness.table(header, rows)


def _run(arm: str, case: Case) -> list[Measurement]:
    return harness.run_fresh(f"benchmarks.{arm}", (str(case.directory),))


def _step_seconds(measurement: Measurement, clock: str = "ends") -> list[float]:
    ends = measurement[clock]
    return [after - before for before, after in zip(ends[WARMUP - 1 :], ends[WARMUP:], strict=False)]


def _median_over_repeats(measured: Sequence[Sequence[Measurement]], clock: str) -> float:
    return statistics.median(statistics.median(_step_seconds(ranks[0], clock)) for ranks in measured)


if __name__ == "__main__":
    sys.exit(main())
