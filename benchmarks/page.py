"""`docs/performance.md`, from the result files: what was measured, on what, beside what. What was not stands as such.

    python -m benchmarks.page [--out docs/performance.md]

Nothing here measures, and no figure is estimated: run the benchmarks (`make bench`, `make bench-gpu`), then this.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

PAGE = harness.ROOT / "docs" / "performance.md"
PLOT = harness.ROOT / "docs" / "results" / "vs-trl-cpu.svg"
NOT_MEASURED = "not measured"
NAMES = {
    "ours-ddp": "distributed_ft, DDP",
    "ours-fsdp": "distributed_ft, FSDP2",
    "trl-packed": "TRL, packed",
    "trl-padded": "TRL, padded",
    "trl-grouped": "TRL, grouped by length",
}
INTRODUCTION = """# Performance

Measured side by side with what a user would pick instead, on the same token ids, packs, batches and initial adapter;
first losses and gradient norms are asserted equal before anything is timed. Arms alternate in fresh processes; figures
are medians, with minimum and maximum. This page is made from `benchmarks/results/` by `python -m benchmarks.page`; what
has not been measured stands as "not measured".
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description="Write docs/performance.md.")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    options.out.write_text(page())
    versus = result("vs_trl_cpu")
    if versus is not None and options.out == PAGE:
        plot(versus, PLOT)
    print(f"wrote {options.out}")
    return 0


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(part() for part in (_versus_trl, _bare_loop, _stall, _one_gpu, _beside))])


def result(name: str) -> dict[str, Any] | None:
    """What a benchmark has measured; None before it has run."""
    path = harness.RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def _versus_trl() -> str:
    title = "## LoRA beside TRL, on two CPU cores\n"
    found = result("vs_trl_cpu")
    if found is None:
        return f"{title}\n{NOT_MEASURED}: `python -m benchmarks.vs_trl_cpu`\n"
    rows = []
    measured = found["bases"]["shipped"]
    best = measured["arms"][measured["best_trl_arm"]]
    for name, arm in measured["arms"].items():
        rows.append(
            [
                NAMES[name] + (" (its best)" if name == measured["best_trl_arm"] else ""),
                _spread(arm["tokens_per_second"], "{:,.0f}"),
                f"{arm['supervised_tokens_per_second']['median']:,.0f}",
                f"{arm['tokens_per_second']['median'] / best['tokens_per_second']['median']:.2f}x",
                f"{arm['resident_peak_bytes']['median'] / 2**20:,.0f} MiB",
                f"{arm['resident_peak_bytes']['median'] / best['resident_peak_bytes']['median']:.2f}x",
            ]
        )
    header = ["", "tokens/s", "supervised tokens/s", "speed", "peak memory of a rank", "memory"]
    told = (
        "The demo's rows and batches, LoRA of rank 16 on all linear layers, fp32, two processes over gloo. TRL has "
        "the settings that are fastest and correct here (`benchmarks/trl_sft.py`), and logs nothing; ours runs as "
        "users run it.\n"
    )
    picture = f"![Tokens a second and memory beside TRL]({PLOT.relative_to(PAGE.parent)})\n"
    return "\n".join([title, told, _table(header, rows), picture, _measured_on(found)])


def _bare_loop() -> str:
    title = "## Over a bare loop\n"
    found = result("overhead")
    if found is None:
        return f"{title}\n{NOT_MEASURED}: `python -m benchmarks.overhead`\n"
    rows = [
        [
            name,
            _spread(case["ratio_of_pairs"], "{:.3f}x"),
            f"{case['ratio_of_cpu']:.3f}x",
            f"{case['parity']['worst']:.1e}",
        ]
        for name, case in found["cases"].items()
    ]
    told = "The step of `fit`, with its metrics, TensorBoard and checks, over a loop of forward, backward and update.\n"
    header = ["", "wall time of a step", "CPU time", "largest difference of a loss"]
    return "\n".join([title, told, _table(header, rows), _measured_on(found)])


def _stall() -> str:
    title = "## What a checkpoint costs\n"
    found = result("checkpoint_stall")
    if found is None:
        return f"{title}\n{NOT_MEASURED}: `python -m benchmarks.checkpoint_stall`\n"
    names = {"async": "in the background (the default)", "sync": "at once"}
    rows = [
        [names[arm], *(_spread(found["seconds"][arm][what], "{:.2f} s") for what in ("blocked", "whole", "step"))]
        for arm in names
    ]
    told = f"Full fine-tuning under FSDP2 on {found['settings']['processes']} processes: what training waited for.\n"
    header = ["saved", "training waited", "until it counted", "a step"]
    return "\n".join([title, told, _table(header, rows), _measured_on(found)])


def _one_gpu() -> str:
    title = "## 8B on one GPU\n"
    found = result("train_8b")
    arms = {arm["method"]["type"]: arm for arm in found["arms"]} if found is not None else {}
    rows = []
    for method in ("lora", "qlora"):
        arm = arms.get(method)
        if arm is None:
            rows.append([f"{method}, sequences of 4,096, bf16", *[NOT_MEASURED] * 5])
            continue
        shares = [f"{arm[key]:.1%}" if arm.get(key) is not None else NOT_MEASURED for key in ("mfu", "hfu")]
        memory = [f"{arm[key] / 2**30:.1f} GiB" for key in ("peak_allocated_bytes", "peak_reserved_bytes")]
        rows.append([method, f"{arm['tokens_per_second']:,.0f}", *shares, *memory])
    rows.append(["TRL, its best arm", *[NOT_MEASURED] * 5])
    told = (
        "A model of Llama-3.1-8B's shape with random weights (`make bench-gpu`). MFU: 4 P + 6 P_lora + 6 L d s FLOPs a "
        "token over the device's bf16 peak; HFU counts what is recomputed too.\n"
    )
    header = ["", "tokens/s", "MFU", "HFU", "allocated", "reserved"]
    return "\n".join([title, told, _table(header, rows), _measured_on(found) if found is not None else ""])


def _beside() -> str:
    """Figures that other pages are about, in a line each."""
    rows = []
    data, evaluation, further = (result(name) for name in ("data_vs_trl", "eval_vs_harness", "eval_extra_checkpoint"))
    planned = result("plan_memory")
    if planned is not None:
        errors = [abs(case["error"]) for case in planned["cases"].values()]
        near = sum(error <= planned["allowed"] for error in errors)
        told = f"memory that `dft plan` counts, within {planned['allowed']:.0%} of the measured peak"
        rows.append([told, f"{near} of {len(errors)} runs", _date(planned)])
    if data is not None:
        faster = data["rows"][max(data["rows"], key=int)]["times_faster"]["1"]["wall"]
        rows.append(["tokenise, mask and pack, one core, beside TRL", f"{faster:.1f}x", _date(data)])
    if evaluation is not None:
        for base, measured in evaluation["bases"].items():
            told = f"six evaluation tasks beside lm-evaluation-harness ({base} base)"
            rows.append([told, f"{measured['together']['wall']:.1f}x", _date(evaluation)])
    if further is not None:
        for base, measured in further["bases"].items():
            told = f"a further checkpoint, over its forward passes ({base})"
            rows.append([told, f"{measured['ratio']['median']:.3f}x", _date(further)])
    return "\n".join(["## Beside training\n", _table(["", "", "measured"], rows)]) if rows else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = "|".join([" --- ", *[" ---: "] * (len(header) - 1)])
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{right}|", *lines[1:], ""])


def _spread(found: dict[str, float], form: str) -> str:
    low, high = form.format(found["min"]), form.format(found["max"])
    return f"{form.format(found['median'])} ({low} to {high})"


def _date(found: dict[str, Any]) -> str:
    return str(found.get("environment", {}).get("date", found.get("date", "")))[:10]


def _measured_on(found: dict[str, Any]) -> str:
    environment = found["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    device = environment.get("gpu") or f"{environment['cores']} cores of {environment['device']}"
    return f"{_date(found)}, {device}, {versions}; `{environment['command']}`.\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Tokens a second and memory of each arm, as bars."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    arms = found["bases"]["shipped"]["arms"]
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [NAMES[name] for name in arms][::-1]
    colors = ["#1f6f8b" if name.startswith("distributed_ft") else "#b9b9b9" for name in names]
    for axis, key, unit, title in (
        (left, "tokens_per_second", 1, "tokens a second"),
        (right, "resident_peak_bytes", 2**20, "peak memory of a rank, MiB"),
    ):
        spans = [arm[key] for arm in arms.values()][::-1]
        values = [span["median"] / unit for span in spans]
        below = [value - span["min"] / unit for value, span in zip(values, spans, strict=True)]
        above = [span["max"] / unit - value for value, span in zip(values, spans, strict=True)]
        axis.barh(names, values, color=colors, xerr=[below, above], error_kw={"ecolor": "#444444", "lw": 1})
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vs-trl-cpu"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
