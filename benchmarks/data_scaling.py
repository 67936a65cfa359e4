"""What the work on data costs as the data grows: audit, `dft data prepare`, tokenising; CPU time a row, and memory.

    python -m benchmarks.data_scaling [--quick] [--sizes 10000 100000 1000000] [--stages …] [--out FILE]

Two files. Support tickets (20,000 chat rows of about 355 characters): the speed of each of the audit's checks in one
process, against the limits. Short rows (about 100 characters, all different) of 10,000, 100,000 and a million: every
stage in a fresh process, by all cores as users run it (`data_scaling_worker.py`), with the memory that parent and
children hold together at most. Required: the linear checks, reading included, 20,000 rows a core-second;
near-duplicates 3,000; a million rows within 4 GB; the cost of a row at most doubles from the smallest file to the
largest.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.data_corpus import Kind, write_corpus
from benchmarks.harness import Measurement

STAGES = ("read", "checks", "near", "audit", "prepare", "tokenise")
LINEAR_ROWS, NEAR_ROWS, MOST_BYTES, MOST_GROWTH = 20_000, 3_000, 4e9, 2.0
TIMEOUT_SECONDS = 3600.0


def measure(stage: str, rows: Path) -> Measurement:
    """One stage in a fresh process."""
    [found] = harness.run_fresh("benchmarks.data_scaling_worker", (stage, str(rows)), 1, TIMEOUT_SECONDS)
    return found


def speed_of_checks(rows: Path, num_rows: int, repeats: int) -> dict[str, Any]:
    """CPU microseconds a row of each check, by medians; near-duplicates apart."""
    runs = [measure("checks", rows)["spent"] for _ in range(repeats)]
    micro = {name: harness.spread([run[name] / num_rows * 1e6 for run in runs]) for name in runs[0]}
    linear = harness.spread([1e6 / sum(_of_row(run, num_rows).values()) for run in runs])
    near = [measure("near", rows)["spent"]["cpu"] for _ in range(repeats)]
    return {
        "cpu_microseconds_per_row": micro,
        "linear_rows_per_core_second": linear,
        "near_rows_per_core_second": harness.spread([num_rows / seconds for seconds in near]),
    }


def _of_row(spent: dict[str, float], num_rows: int) -> dict[str, float]:
    return {name: seconds / num_rows * 1e6 for name, seconds in spent.items() if name != "near"}


def scaling(folder: Path, sizes: Sequence[int], stages: Sequence[str]) -> dict[str, dict[str, Measurement]]:
    """Stage -> rows -> what it cost."""
    found: dict[str, dict[str, Measurement]] = {stage: {} for stage in stages}
    for num_rows in sizes:
        rows = write_corpus(folder / f"short-{num_rows}.jsonl", "short", num_rows)
        for stage in stages:
            told = measure(stage, rows)
            spent = told["spent"]
            cpu = spent["cpu"] if "cpu" in spent else sum(spent.values())
            one = {"cpu_seconds": cpu, "wall_seconds": spent.get("wall"), "peak_bytes": told["peak_bytes"]}
            one |= {"cpu_microseconds_per_row": cpu / num_rows * 1e6, "rows_per_core_second": num_rows / cpu}
            if stage == "checks":
                one["by_check"] = _of_row(spent, num_rows)
            found[stage][str(num_rows)] = one
            print(f"  {stage} {num_rows:,}: {cpu:.1f} CPU s, {told['peak_bytes'] / 2**20:,.0f} MiB", file=sys.stderr)
        rows.unlink()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_scaling", description="What work on data costs.")
    parser.add_argument("--quick", action="store_true", help="2,000 and 4,000 rows; no result file unless --out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--repeats", type=int, default=3, help="of the checks, which are held to a speed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    sizes, repeats, tickets = sorted(options.sizes), options.repeats, 20_000
    if options.quick:
        sizes, repeats, tickets = [2000, 4000], 1, 2000
    out = options.out or (None if options.quick else harness.RESULTS / "data_scaling.json")
    result: dict[str, Any] = {"benchmark": "data_scaling", "environment": harness.environment()}
    result["required"] = {
        "linear_rows_per_core_second": LINEAR_ROWS,
        "near_rows_per_core_second": NEAR_ROWS,
        "most_bytes": MOST_BYTES,
        "most_growth_of_a_row": MOST_GROWTH,
    }
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        kind: Kind = "tickets"
        rows = write_corpus(Path(temporary) / "tickets.jsonl", kind, tickets)
        result["checks"] = {"rows": tickets, **speed_of_checks(rows, tickets, repeats)}
        result["stages"] = scaling(Path(temporary), sizes, options.stages)
    result["growth"] = {
        stage: found[str(sizes[-1])]["cpu_microseconds_per_row"] / found[str(sizes[0])]["cpu_microseconds_per_row"]
        for stage, found in result["stages"].items()
    }
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as tables, and a line on each requirement."""
    checks, stages = result["checks"], result["stages"]
    linear, near = (checks[f"{kind}_rows_per_core_second"]["median"] for kind in ("linear", "near"))
    micro = sorted(checks["cpu_microseconds_per_row"].items(), key=lambda item: -item[1]["median"])
    rows = [[name, f"{spent['median']:.1f} ({spent['min']:.1f}-{spent['max']:.1f})"] for name, spent in micro]
    parts = [harness.table([f"check, {checks['rows']:,} tickets", "CPU us/row"], rows), ""]
    rows = [
        [
            f"{stage} {int(size):,}",
            f"{one['cpu_microseconds_per_row']:.1f}",
            f"{one['rows_per_core_second']:,.0f}",
            "" if one["wall_seconds"] is None else f"{one['wall_seconds']:.1f}",
            f"{one['peak_bytes'] / 2**20:,.0f}",
        ]
        for stage, found in stages.items()
        for size, one in found.items()
    ]
    parts += [harness.table(["stage, short rows", "CPU us/row", "rows/core-s", "wall s", "peak MiB"], rows), ""]
    peak = max(one["peak_bytes"] for found in stages.values() for one in found.values())
    stage, growth = max(result["growth"].items(), key=lambda item: item[1])
    for told, enough in (
        (f"linear checks: {linear:,.0f} rows a core-second, at least {LINEAR_ROWS:,}", linear >= LINEAR_ROWS),
        (f"near-duplicates: {near:,.0f} rows a core-second, at least {NEAR_ROWS:,}", near >= NEAR_ROWS),
        (f"memory: {peak / 1e9:.2f} GB, at most {MOST_BYTES / 1e9:g}", peak <= MOST_BYTES),
        (f"a row of the largest file costs {growth:.2f} of one of the smallest ({stage})", growth <= MOST_GROWTH),
    ):
        parts.append(f"{told}: {'yes' if enough else 'NO'}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
