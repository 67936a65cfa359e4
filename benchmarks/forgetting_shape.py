"""Whether forgetting has the shape on the tiny base that the literature gives it, and where it has not.

    python -m benchmarks.forgetting_shape --work FOLDER [--seeds 6] [--out FILE] [--plot FILE]

New tasks are trained without any general data, by the code of `dft train` and `dft eval`, in five arms; after each
epoch the share of the general items that the base had right and that are wrong now is taken (the `of_known` of
`evaluation.forgetting`). Expected (Luo et al. 2023, arXiv:2308.08747: it grows with training; Biderman et al. 2024,
arXiv:2405.09673: LoRA forgets less than full fine-tuning, a low rank less than a high one):

* in each arm, the last epoch forgets more than the first;
* full > rank 64 > rank 16 > rank 4, at the last epoch.

LoRA and full fine-tuning have rates of their own, so full is trained at a quarter of LoRA's rate, as recipes do, and
at the same rate. Differences are paired by seed, with 95% t-intervals over the seeds; one is called shown when its
interval excludes 0. Nothing is required: the result file says of each claim whether it holds. A run that is done is
kept.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import harness
from benchmarks.diagnosis_plants import write_forgetting_run
from benchmarks.diagnosis_quality import train
from distributed_ft.artifacts import RunDirectory
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.report.scores import Scores
from distributed_ft.model.load import quiet_libraries
from distributed_ft.parallel.world import World, form_world, leave

RATE: Final = 2e-3
ARMS: Final[dict[str, dict[str, Any]]] = {
    "full, LoRA's rate": {"method": {"type": "full"}, "lr": RATE},
    "full, a quarter of it": {"method": {"type": "full"}, "lr": RATE / 4},
    **{
        f"LoRA, rank {rank}": {
            "method": {"type": "lora", "rank": rank, "alpha": 2 * rank, "target_modules": "all-linear"},
            "lr": RATE,
        }
        for rank in (64, 16, 4)
    },
}
EPOCHS: Final = 4
T975: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}  # quantiles of Student's t
CLAIMS: Final = (
    ("full, LoRA's rate", "LoRA, rank 64"),
    ("full, a quarter of it", "LoRA, rank 64"),
    ("LoRA, rank 64", "LoRA, rank 16"),
    ("LoRA, rank 16", "LoRA, rank 4"),
)

Curve = list[float]  # by epoch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are, and stay")
    parser.add_argument("--seeds", type=int, default=6, choices=range(2, 9))
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "forgetting_shape.json")
    parser.add_argument("--plot", type=Path, default=harness.ROOT / "docs" / "results" / "forgetting-shape.svg")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quiet_libraries()
    world, work = form_world(1), given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Curve]] = {arm: [] for arm in ARMS}
    for seed in range(given.seeds):
        for number, arm in enumerate(ARMS):
            found[arm].append(curve_of(work, arm, f"shape-{number}-{seed}", seed, world))
            print(f"{arm}, seed {seed}: {', '.join(f'{v:.2f}' for v in found[arm][-1])}", file=sys.stderr)
    result = {"benchmark": "forgetting_shape", "environment": harness.environment(), "seeds": given.seeds}
    result |= {"arms": {arm: summary(curves) for arm, curves in found.items()}, "claims": claims(found)}
    harness.write_result(given.out, result)
    plot(result["arms"], given.plot)
    print(table(result))
    return 0


def curve_of(work: Path, arm: str, name: str, seed: int, world: World) -> Curve:
    """Share of what the base had right that is wrong, after each epoch."""
    run = RunDirectory(work / "runs" / name)
    done = work / "done" / name
    if not done.is_file():
        train(write_forgetting_run(work, name, seed, EPOCHS, **ARMS[arm]), world)
        evaluate(run.path)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text("")
    scores = Scores(run)
    lost = [scores.forgotten(checkpoint.name) for checkpoint in run.all_checkpoints()]
    assert len(lost) == EPOCHS, (name, len(lost))
    return [of.of_known or 0.0 for of in lost if of is not None]


def summary(curves: list[Curve]) -> dict[str, Any]:
    """By epoch: mean over the seeds and its interval, as far as a share can lie there."""
    epochs = [interval([curve[epoch] for curve in curves]) for epoch in range(EPOCHS)]
    return {"by_seed": curves, "mean": [e[0] for e in epochs], "low": [max(0.0, e[1]) for e in epochs],
            "high": [min(1.0, e[2]) for e in epochs]}  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95% t-interval."""
    mean = statistics.fmean(values)
    half = T975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return round(mean, 4), round(mean - half, 4), round(mean + half, 4)


def claims(found: dict[str, list[Curve]]) -> list[dict[str, Any]]:
    """What the literature says, with the paired difference that would show it."""
    grown = [(f"{arm}: epoch {EPOCHS} > epoch 1", [c[-1] - c[0] for c in curves]) for arm, curves in found.items()]
    ranked = [
        (f"{more} > {less}", [a[-1] - b[-1] for a, b in zip(found[more], found[less], strict=True)])
        for more, less in CLAIMS
    ]
    return [claim(text, differences) for text, differences in [*grown, *ranked]]


def claim(text: str, differences: Sequence[float]) -> dict[str, Any]:
    mean, low, high = interval(differences)
    said = "shown" if low > 0 else "refuted" if high < 0 else "not shown"
    return {"claim": text, "difference": mean, "low": low, "high": high, "holds": said}


def plot(arms: dict[str, dict[str, Any]], path: Path) -> None:
    """Forgetting by epoch, an arm a line, bars for the intervals."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    colours = ("#b3261e", "#e08b00", "#1f4e9c", "#3f8fd2", "#7bb8a4")
    for (arm, found), colour, shift in zip(arms.items(), colours, (-0.08, -0.04, 0, 0.04, 0.08), strict=True):
        epochs = [epoch + shift for epoch in range(1, EPOCHS + 1)]
        means = [100 * value for value in found["mean"]]
        bars = [
            [min(m, m - 100 * low) for m, low in zip(means, found["low"], strict=True)],
            [min(100 - m, 100 * high - m) for m, high in zip(means, found["high"], strict=True)],
        ]
        axes.errorbar(epochs, means, yerr=bars, color=colour, marker="o", markersize=4, capsize=3, label=arm)
    axes.set(xlabel="Epochs", ylabel="Of what the base had right, now wrong (%)", ylim=(0, 102))
    axes.set_xticks(range(1, EPOCHS + 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.legend(frameon=False, fontsize=9, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "forgetting-shape"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    print(f"wrote {path}")


def table(result: dict[str, Any]) -> str:
    by_epoch = [
        [arm, *(f"{100 * m:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
                for m, low, high in zip(found["mean"], found["low"], found["high"], strict=True))]
        for arm, found in result["arms"].items()
    ]  # fmt: skip
    said = [
        [c["claim"], f"{100 * c['difference']:+.0f} [{100 * c['low']:+.0f}, {100 * c['high']:+.0f}]", c["holds"]]
        for c in result["claims"]
    ]
    epochs = [f"epoch {epoch}" for epoch in range(1, EPOCHS + 1)]
    return "\n\n".join(
        [harness.table(["% forgotten", *epochs], by_epoch), harness.table(["claim", "points", ""], said)]
    )


if __name__ == "__main__":
    leave(main())
