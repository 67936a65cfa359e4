"""Our preparation of data beside TRL's: the same file, tokenizer, tokens and masks; read, tokenise, mask, pack.

    python -m benchmarks.data_vs_trl [--quick] [--repeats 3] [--rows 20000 100000] [--out FILE]

The file: support tickets, every fourth row a conversation of three, `messages`; the embedded base's tokenizer and
template (with generation markers); packed into sequences of 1024 by best-fit-decreasing. Timed is everything from the
file's bytes to the packs: of ours `prepare`, of TRL `load_dataset` and `SFTTrainer`'s `_prepare_dataset`; how it stands
if TRL is spared the reading is told as well (`data_worker.py`). On one core (pinned, one process) and on all.

Before anything is timed every row of the smallest file has the same ids and labels in both; each timed run has the same
documents (ids and labels, by digest) as all others of its file. Then fresh processes, arm after arm, `repeats` times,
cold caches. Required: 3 times TRL's rows a second, on one core and on all.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.data_corpus import write_corpus
from benchmarks.harness import Measurement

SEQ_LEN = 1024
REQUIRED = 3.0
TIMEOUT_SECONDS = 900.0


def runner(arm: str, rows: Path, cores: int) -> Callable[[], list[Measurement]]:
    """What measures an arm once, in a fresh process."""
    arguments = (arm, str(rows), str(SEQ_LEN), str(cores))
    return partial(harness.run_fresh, "benchmarks.data_worker", arguments, 1, TIMEOUT_SECONDS)


def measure(rows: Path, num_rows: int, repeats: int) -> dict[str, Any]:
    """Time both on one core and on all; see the module's docstring. AssertionError when documents differ."""
    cores = sorted({1, len(os.sched_getaffinity(0))})
    arms = {f"{arm}-{n}": runner(arm, rows, n) for n in cores for arm in ("ours", "trl")}
    runs = harness.interleaved(arms, repeats)
    every = [one for ranks in runs.values() for (one,) in ranks]
    assert len({one["digest"] for one in every}) == 1, {name: ranks[0][0]["digest"] for name, ranks in runs.items()}
    results = {name: _summary([one for (one,) in ranks], num_rows) for name, ranks in runs.items()}
    ratios = {
        str(n): {
            "wall": _ratio(results, n, lambda arm: arm["wall_seconds"]["median"]),
            "cpu": _ratio(results, n, lambda arm: arm["cpu_seconds"]["median"]),
            "wall_only_ours_reads": _ratio(results, n, lambda arm: arm["prepare_wall_seconds"]["median"]),
        }
        for n in cores
    }
    counts = {key: every[0][key] for key in ("documents", "tokens", "supervised", "digest")}
    return {**counts, "arms": results, "times_faster": ratios}


def _summary(repeats: list[Measurement], num_rows: int) -> dict[str, Any]:
    def whole(kind: str) -> list[float]:
        return [one["prepare"][kind] + one.get("read", {kind: 0.0})[kind] for one in repeats]  # ours reads in prepare

    return {
        "packs": repeats[0]["packs"],
        "wall_seconds": harness.spread(whole("wall")),
        "cpu_seconds": harness.spread(whole("cpu")),
        "prepare_wall_seconds": harness.spread([one["prepare"]["wall"] for one in repeats]),
        "rows_per_second": harness.spread([num_rows / seconds for seconds in whole("wall")]),
        "cpu_microseconds_per_row": harness.spread([seconds / num_rows * 1e6 for seconds in whole("cpu")]),
    }


def _ratio(results: dict[str, Any], cores: int, of: Callable[[dict[str, Any]], float]) -> float:
    return of(results[f"trl-{cores}"]) / of(results[f"ours-{cores}"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_vs_trl", description="Our data beside TRL's.")
    parser.add_argument("--quick", action="store_true", help="1 repeat of 2,000 rows; no result file unless --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    repeats, sizes = (1, [2000]) if options.quick else (options.repeats, sorted(options.rows))
    out = options.out or (None if options.quick else harness.RESULTS / "data_vs_trl.json")
    result: dict[str, Any] = {"benchmark": "data_vs_trl", "environment": harness.environment()}
    result["settings"] = {"repeats": repeats, "seq_len": SEQ_LEN, "required_times_faster": REQUIRED}
    result["rows"] = {}
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        for num_rows in sizes:
            rows = write_corpus(Path(temporary) / f"rows-{num_rows}.jsonl", "turns", num_rows)
            if num_rows == sizes[0]:
                [same] = runner("same", rows, 1)()
                print(f"{same['documents']:,} rows have the same ids and labels in both", file=sys.stderr)
                result["same_row_by_row"] = same["documents"]
            result["rows"][str(num_rows)] = measure(rows, num_rows, repeats)
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as a table, and a line on the requirement, for each size."""
    parts = []
    for num_rows, measured in result["rows"].items():
        rows = []
        for name, arm in measured["arms"].items():
            wall, speed = arm["wall_seconds"], arm["rows_per_second"]
            rows.append(
                [
                    f"{int(num_rows):,} rows {name}",
                    f"{wall['median']:.2f} ({wall['min']:.2f}-{wall['max']:.2f})",
                    f"{speed['median']:,.0f}",
                    f"{arm['cpu_microseconds_per_row']['median']:.0f}",
                    f"{arm['packs']:,}",
                ]
            )
        parts.append(harness.table(["arm-cores", "seconds", "rows/s", "CPU us/row", "packs"], rows))
        for cores, ratio in measured["times_faster"].items():
            enough = "yes" if ratio["wall"] >= REQUIRED else "NO"
            parts.append(
                f"cores {cores}: {ratio['wall']:.1f}x TRL's rows/s ({ratio['cpu']:.1f}x by CPU seconds; "
                f"{ratio['wall_only_ours_reads']:.1f}x if only ours reads the file); at least {REQUIRED:g}x: {enough}"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
