"""How often which label was taken for which, for the report and for TensorBoard. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_ft.evaluation.tasks.classification import NO_LABEL, f1_by_label
from distributed_ft.records import Sample, TaskResult

METRIC = "classification"
OTHER = "(other)"
MOST = 12  # labels of a table that a person can read


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: items whose right label is `right[i]` and that were given `named[j]`; `f1` of each right label,
    None where it is of several.

    Labels are the commonest right ones first. The rarest are taken together where there are too many; an answer that
    names no label, or several, is the last column.
    """

    right: tuple[str, ...]
    named: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    f1: tuple[float | None, ...]


def confusion(result: TaskResult, samples: Sequence[Sample], most: int = MOST) -> Confusion | None:
    """Of one model's answers to a classification; None of another metric."""
    if result.metric != METRIC or not samples:
        return None
    pairs = Counter((sample.reference.strip(), sample.answer or NO_LABEL) for sample in samples)
    seen = Counter({label: 0 for pair in pairs for label in pair if label != NO_LABEL})
    for (right, _), n in pairs.items():
        seen[right] += n
    labels = sorted(seen, key=lambda label: (-seen[label], label))
    kept = labels if len(labels) <= most else labels[: most - 1]
    shown = {label: label if label in kept else OTHER for label in labels} | {NO_LABEL: NO_LABEL}
    folded: Counter[tuple[str, str]] = Counter()
    for (right, named), n in pairs.items():
        folded[shown[right], shown[named]] += n
    axis = list(dict.fromkeys(shown[label] for label in labels))
    rows = [label for label in axis if any(right == label for right, _ in folded)]
    columns = axis + ([NO_LABEL] if any(named == NO_LABEL for _, named in folded) else [])
    f1 = f1_by_label(pairs)
    return Confusion(
        tuple(rows),
        tuple(columns),
        tuple(tuple(folded[right, named] for named in columns) for right in rows),
        tuple(f1.get(label) if label in kept else None for label in rows),
    )


def image(found: Confusion, title: str) -> NDArray[np.uint8]:
    """The matrix drawn, each row as shares of its right label: height x width x 3, of 0 to 255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 + 0.6 * len(found.named), 1.8 + 0.5 * len(found.right)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    counts = np.array(found.counts, dtype=np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(found.named)), [_short(name) for name in found.named], rotation=45, ha="right")
    axes.set_yticks(range(len(found.right)), [_short(name) for name in found.right])
    axes.set(xlabel="answered", ylabel="right", title=title.replace("$", r"\$"))
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _short(label: str) -> str:
    cut = label if len(label) <= 24 else label[:23] + "…"
    return cut.replace("$", r"\$")  # no formula
