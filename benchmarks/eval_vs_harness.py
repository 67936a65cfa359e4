"""Our evaluation beside lm-evaluation-harness: the same items, prompts, model, machine and scores.

    python -m benchmarks.eval_vs_harness [--quick] [--repeats 3] [--out FILE]

Tasks: see `eval_tasks.py`. Bases: the embedded one, and the same with a vocabulary as large as real models have. Arms:
ours by its defaults, the harness's HF backend at each of BATCH_SIZES (the wide base: the first); what counts is the
harness's best of them, task by task. Each arm is a fresh process on one thread, arm after arm, `repeats` times (wide
once); timed is the answering alone (`eval_worker.py`). The scores of every item are equal, or this ends with an
error. Required: twice the harness's speed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.eval_tasks import NAMES, write_tasks, write_wide_base
from benchmarks.harness import Measurement
from distributed_ft.config.paths import ASSETS

OURS = 32  # evaluation.batch_size by default
BATCH_SIZES = (32, 128)
REQUIRED = 2.0
TIMEOUT_SECONDS = 900.0


def measure(names: Sequence[str], repeats: int) -> dict[str, Any]:
    """By base: seconds by task and arm. AssertionError where a score differs."""
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        folder, shipped = Path(temporary), str(ASSETS / "base")
        write_tasks(folder, shipped)
        wide = write_wide_base(shipped, folder / "wide")
        return {
            "embedded": _of_base(shipped, temporary, names, BATCH_SIZES, repeats),
            "wide": _of_base(wide, temporary, names, BATCH_SIZES[:1], 1),
        }


def _of_base(base: str, folder: str, names: Sequence[str], sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    arms = {"ours": ("ours", base, folder, str(OURS), ",".join(names))}
    arms |= {f"harness-{n}": ("harness", base, folder, str(n), ",".join(names)) for n in sizes}
    runs = harness.interleaved(
        {
            name: partial(harness.run_fresh, "benchmarks.eval_worker", arguments, 1, TIMEOUT_SECONDS)
            for name, arguments in arms.items()
        },
        repeats,
    )
    tasks = {task: _of_task(task, {arm: [one for (one,) in ranks] for arm, ranks in runs.items()}) for task in names}
    return {"tasks": tasks, "together": together(tasks)}


def _of_task(task: str, runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    scores = [one[task]["scores"] for of_arm in runs.values() for one in of_arm]
    differing = [i for i, values in enumerate(zip(*scores, strict=True)) if max(values) - min(values) > 1e-3]
    assert not differing, f"{task}: the scores of items {differing[:5]} differ"
    seconds = {
        arm: {kind: harness.spread([one[task]["seconds"][kind] for one in of_arm]) for kind in ("wall", "cpu")}
        for arm, of_arm in runs.items()
    }
    best = min((arm for arm in seconds if arm != "ours"), key=lambda arm: seconds[arm]["wall"]["median"])
    return {
        "items": len(scores[0]),
        "mean_score": sum(scores[0]) / len(scores[0]),
        "seconds": seconds,
        "best_of_harness": best,
        "times_faster": {
            kind: seconds[best][kind]["median"] / seconds["ours"][kind]["median"] for kind in ("wall", "cpu")
        },
    }


def together(tasks: dict[str, Any]) -> dict[str, float]:
    """Of all tasks: the harness's seconds, each task at its best, to ours."""
    return {
        kind: sum(t["seconds"][t["best_of_harness"]][kind]["median"] for t in tasks.values())
        / sum(t["seconds"]["ours"][kind]["median"] for t in tasks.values())
        for kind in ("wall", "cpu")
    }


def render(result: dict[str, Any]) -> str:
    """As a table, and a line on the requirement for each base."""
    rows, lines = [], []
    for base, measured in result["bases"].items():
        for name, task in measured["tasks"].items():
            best = task["best_of_harness"]
            ours, theirs = task["seconds"]["ours"]["wall"], task["seconds"][best]["wall"]
            rows.append(
                [
                    f"{base} {name}",
                    str(task["items"]),
                    f"{task['mean_score']:.3f}",
                    f"{ours['median']:.2f} ({ours['min']:.2f}-{ours['max']:.2f})",
                    f"{theirs['median']:.2f} ({theirs['min']:.2f}-{theirs['max']:.2f})",
                    best,
                    f"{task['times_faster']['wall']:.2f}x",
                    f"{task['times_faster']['cpu']:.2f}x",
                ]
            )
        ratio = measured["together"]
        enough = "yes" if ratio["wall"] >= REQUIRED else "NO"
        lines.append(
            f"{base}, all tasks: {ratio['wall']:.2f}x the harness's speed ({ratio['cpu']:.2f}x by CPU seconds); "
            f"at least {REQUIRED:g}x: {enough}"
        )
    header = ["base and task", "items", "score", "ours, s", "harness, s", "its best", "wall", "CPU"]
    return "\n".join([harness.table(header, rows), *lines])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eval_vs_harness", description="Ours beside lm-eval.")
    parser.add_argument("--quick", action="store_true", help="1 repeat of one task; no result file unless --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    names, repeats = (NAMES[2:3], 1) if options.quick else (NAMES, options.repeats)
    out = options.out or (None if options.quick else harness.RESULTS / "eval_vs_harness.json")
    result: dict[str, Any] = {"benchmark": "eval_vs_harness", "environment": harness.environment()}
    result["settings"] = {"repeats": repeats, "batch_size": OURS, "harness_batch_sizes": BATCH_SIZES, "threads": 1}
    result["bases"] = measure(names, repeats)
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
