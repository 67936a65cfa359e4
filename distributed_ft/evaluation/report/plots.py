"""The report's plots, as inline SVG that follows the page's colours and width.

matplotlib draws with placeholder colours that are then replaced by the CSS variables of the page, so that one drawing
serves light and dark; text stays text. Each plot is drawn twice, for a wide page and for a phone (CSS shows one): a
drawing that is merely scaled down has labels that nobody can read.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from distributed_ft.evaluation.report.evidence import CheckpointScores, Curves, Estimate
from distributed_ft.evaluation.strength import Frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# placeholder -> CSS variable of templates/report.html.j2
INK, FAINT, GRID, BASE, FEW_SHOT, TUNED, LOST = (
    "#010101",
    "#010102",
    "#010103",
    "#010104",
    "#010105",
    "#010106",
    "#010107",
)
CARD = "#010108"
VARIABLES = {
    INK: "--ink", FAINT: "--faint", GRID: "--grid", BASE: "--base", FEW_SHOT: "--few", TUNED: "--tuned", LOST: "--bad",
    CARD: "--card",
}  # fmt: skip
POINTS_DRAWN = 600  # of a raw curve; more cannot be seen and only make the file large
LOG_FROM = 30.0  # smoothed losses that span this factor are drawn on a logarithmic axis


class Size(NamedTuple):
    """In points (1/72 inch), which are the units of the SVG."""

    name: str
    width: float
    height: float
    font: float


WIDE = Size("wide", 860, 400, 11.5)
NARROW = Size("narrow", 350, 380, 10.5)


def checkpoint_plot(
    rows: Sequence[CheckpointScores],
    *,
    base: Estimate | None,
    few_shot: Estimate | None,
    budget: float,
    marked: int | None,
    size: Size,
    label: str,
) -> str | None:
    """Task score above, mean drop on the general suite below, over the steps; None when nothing was scored."""
    scored = [row for row in rows if row.task is not None]
    forgot = [row for row in rows if row.forgetting is not None]
    if not scored and not forgot:
        return None
    figure = _figure(size, 2 if scored and forgot else 1)
    axes: list[Axes] = list(figure.axes)
    if scored:
        _draw_scores(axes[0], scored, base, few_shot, marked)
    if forgot:
        _draw_drops(axes[-1], forgot, budget, marked)
    _step_axis(axes, [row.step for row in rows if row in scored or row in forgot], marked, label, size)
    return _svg(figure, f"checkpoints-{size.name}", "Task score and forgetting by checkpoint")


def loss_plot(curves: Curves, *, marked: int | None, size: Size) -> str | None:
    """Training loss, raw and smoothed, and validation loss; None without a curve."""
    if len(curves.steps) < 2:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = _figure(size._replace(height=size.height * 0.72), 1)
    axis = figure.axes[0]
    stride = -(-len(curves.steps) // POINTS_DRAWN)
    axis.plot(curves.steps[::stride], curves.loss[::stride], color=TUNED, alpha=0.28, linewidth=0.8)
    axis.plot(curves.steps[::stride], curves.smoothed[::stride], color=TUNED, linewidth=2, label="training")
    if curves.validation_steps:
        axis.plot(
            curves.validation_steps, curves.validation_loss, color=FEW_SHOT, linewidth=2, marker="o", markersize=5,
            label="validation", markeredgecolor=CARD, markeredgewidth=1,
        )  # fmt: skip
    drawn = [*curves.smoothed, *curves.validation_loss]
    if min(drawn) > 0 and max(drawn) / min(drawn) > LOG_FROM:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(_plain_number)
        axis.yaxis.set_minor_formatter("")
        unit = "loss, nats per token (log scale)"
    else:
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter(_plain_number)
        axis.set_ylim(0, max(max(drawn) * 1.05, sorted(curves.loss)[int(0.99 * (len(curves.loss) - 1))] * 1.05))
        unit = "loss, nats per token"
    if curves.skipped:
        height = [0.02] * len(curves.skipped)
        axis.plot(
            curves.skipped, height, color=LOST, linestyle="none", marker="x", markersize=6, label="step skipped",
            transform=axis.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    if marked is not None:
        axis.axvline(marked, color=FAINT, linewidth=1, linestyle=(0, (3, 3)), label=f"step {marked}")
    _title(axis, unit)
    axis.set_xlabel("optimizer step")
    axis.legend(loc="upper right", labelcolor=INK, facecolor=CARD, edgecolor="none", framealpha=1)
    axis.margins(x=0.01)
    return _svg(figure, f"loss-{size.name}", "Training and validation loss by step")


def lengths_plot(edges: Sequence[int], prompt: Sequence[int], answer: Sequence[int], index: int, size: Size) -> str:
    """Rows of a data file by the length of prompt and answer, in characters on a logarithmic axis.

    `prompt[i]`, `answer[i]`: rows with `edges[i]` to `edges[i + 1]` characters; `index`: of the file in the report.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = _figure(size._replace(height=size.height * 0.55), 1)
    axis = figure.axes[0]
    ends = [max(edge, 1) for edge in edges]
    for counts, color, name in ((prompt, FEW_SHOT, "prompt"), (answer, TUNED, "answer")):
        axis.stairs(counts, ends, color=color, fill=True, alpha=0.25)
        axis.stairs(counts, ends, color=color, linewidth=1.5, label=name)
    axis.set_xscale("log")
    used = [i for i, pair in enumerate(zip(prompt, answer, strict=True)) if any(pair)]
    axis.set_xlim(ends[used[0]] * 0.9, ends[used[-1] + 1] * 1.1)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_xlabel("characters")
    axis.legend(frameon=False, labelcolor=INK)
    _title(axis, "Rows by length")
    return _svg(figure, f"lengths{index}-{size.name}", "Rows by length of prompt and answer")


def frontier_plot(frontier: Frontier, *, budget: float, size: Size) -> str | None:
    """What each strength of an adapter scores over what it loses; None without a general suite."""
    points = [(p, p.mean_drop, p.drop_low, p.drop_high) for p in frontier.points]
    drawn = [(p, x, low, high) for p, x, low, high in points if x is not None and low is not None and high is not None]
    if len(drawn) < 2:
        return None
    figure = _figure(size._replace(height=size.height * 0.9), 1)
    axis = figure.axes[0]
    left, right = min(low for *_, low, _ in drawn), max([high for *_, high in drawn] + [2 * budget, 0.1])
    pad = 0.06 * (right - left)
    axis.set_xlim(left - pad, right + pad)
    bottom, top = min(p.low for p, *_ in drawn), max(p.high for p, *_ in drawn)
    margin = 0.1 * max(top - bottom, 0.1)
    axis.set_ylim(bottom - margin, top + margin)
    axis.axvspan(budget, right + pad, color=LOST, alpha=0.1, linewidth=0)
    axis.axvline(budget, color=LOST, linewidth=1.2, linestyle=(0, (5, 3)))
    axis.plot([x for _, x, *_ in drawn], [p.accuracy for p, *_ in drawn], color=TUNED, linewidth=1.5, alpha=0.55)
    for p, x, low, high in drawn:
        color = BASE if p.strength == 0 else TUNED
        across, up = [[max(0.0, x - low)], [max(0.0, high - x)]], [[p.accuracy - p.low], [p.high - p.accuracy]]
        axis.errorbar([x], [p.accuracy], xerr=across, yerr=up, color=color, alpha=0.45, elinewidth=1.2, capsize=2.5)
        face, extent = (color, 9.0) if p.strength == frontier.recommended else (CARD, 6.5)
        axis.plot(
            [x], [p.accuracy], marker="o", markersize=extent, color=color, markerfacecolor=face, markeredgewidth=1.6
        )
    names = ["base" if p.strength == 0 else f"{p.strength:g}" for p, *_ in drawn]
    figure.draw_without_rendering()  # places what is drawn
    _name_points(axis, [(x, p.accuracy) for p, x, *_ in drawn], names, size.font)
    axis.xaxis.set_major_formatter(_points)
    axis.yaxis.set_major_formatter(_percent)
    axis.set_xlabel(f"mean drop on general skills, points; dashed: budget {100 * budget:g}")
    _title(axis, "task score, by strength of the adapter")
    return _svg(figure, f"strength-{size.name}", "Task score and forgetting by strength of the adapter")


def _name_points(axis: "Axes", points: Sequence[tuple[float, float]], names: Sequence[str], font: float) -> None:
    """Beside each point its name, where neither a point nor another name is; names of one place are joined. The
    figure must have been laid out."""
    scale = 72 / axis.figure.dpi
    at = [(scale * x, scale * y) for x, y in axis.transData.transform(list(points))]  # in points of 1/72 inch
    joined: dict[int, list[str]] = {}
    for i, name in enumerate(names):
        same = (j for j in joined if abs(at[i][0] - at[j][0]) < 4 and abs(at[i][1] - at[j][1]) < 4)
        joined.setdefault(next(same, i), []).append(name)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for i, here in joined.items():
        text = ", ".join(here)
        width, (x, y) = 0.62 * font * len(text), at[i]
        boxes = {
            (dx, dy): (left := x + dx - (width if dx < 0 else 0), low := y + dy, left + width, low + font)
            for dx in (8, -8)
            for dy in (5, -5 - font)
        }
        free = [place for place, box in boxes.items() if not any(_overlap(box, other) for other in taken)]
        place = (free or list(boxes))[0]
        taken.append(boxes[place])
        axis.annotate(
            text, points[i], xytext=place, textcoords="offset points", color=INK, fontweight="bold", va="bottom",
            ha="right" if place[0] < 0 else "left",
        )  # fmt: skip


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_scores(
    axis: "Axes", rows: Sequence[CheckpointScores], base: Estimate | None, few_shot: Estimate | None, marked: int | None
) -> None:
    estimates = [row.task for row in rows if row.task is not None]
    for reference, color in ((base, BASE), (few_shot, FEW_SHOT)):
        if reference is not None:
            axis.axhspan(reference.low, reference.high, color=color, alpha=0.16, linewidth=0)
            axis.axhline(reference.score, color=color, linewidth=1.5)
    _error_bars(
        axis, rows, [e.score for e in estimates], [e.low for e in estimates], [e.high for e in estimates], TUNED, marked
    )
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    named = [("base", base, BASE), ("few-shot", few_shot, FEW_SHOT)]
    _reference_labels(axis, [(text, e.score, color) for text, e, color in named if e is not None])
    _title(axis, "task score")


def _draw_drops(axis: "Axes", rows: Sequence[CheckpointScores], budget: float, marked: int | None) -> None:
    lost = [row.forgetting for row in rows if row.forgetting is not None]
    top = max([f.drop_high for f in lost] + [budget * 2, 0.1]) * 1.08
    bottom = min([f.drop_low for f in lost] + [0.0])
    bottom -= 0.06 * (top - bottom)
    axis.axhspan(budget, top, color=LOST, alpha=0.1, linewidth=0)
    axis.axhline(budget, color=LOST, linewidth=1.2, linestyle=(0, (5, 3)))
    axis.axhline(0, color=FAINT, linewidth=0.8)
    _error_bars(
        axis, rows, [f.mean_drop for f in lost], [f.drop_low for f in lost], [f.drop_high for f in lost], LOST, marked
    )
    axis.set_ylim(bottom, top)
    axis.yaxis.set_major_formatter(_points)
    _reference_labels(axis, [(f"budget {100 * budget:g}", budget, LOST)])
    _title(axis, "mean drop on general skills, points")


def _error_bars(
    axis: "Axes",
    rows: Sequence[CheckpointScores],
    values: list[float],
    lows: list[float],
    highs: list[float],
    color: str,
    marked: int | None,
) -> None:
    steps = [row.step for row in rows]
    below = [max(0.0, value - low) for value, low in zip(values, lows, strict=True)]
    above = [max(0.0, high - value) for value, high in zip(values, highs, strict=True)]
    axis.plot(steps, values, color=color, linewidth=1.5, alpha=0.55)
    axis.errorbar(steps, values, yerr=[below, above], color=color, linestyle="none", capsize=3, elinewidth=1.5)
    for step, value in zip(steps, values, strict=True):
        face, extent = (color, 8.0) if step == marked else (CARD, 6.0)
        axis.plot(
            [step], [value], marker="o", markersize=extent, color=color, markerfacecolor=face, markeredgewidth=1.6
        )


def _reference_labels(axis: "Axes", labels: list[tuple[str, float, str]]) -> None:
    """At the right end of their lines, outside the plot, pushed apart where two would overlap."""
    low, high = axis.get_ylim()
    nearest = 0.14 * (high - low)
    at = -float("inf")
    for text, value, color in sorted(labels, key=lambda label: label[1]):
        at = max(value, at + nearest)
        axis.text(1.012, at, text, color=color, va="center", transform=axis.get_yaxis_transform(), clip_on=False)


def _step_axis(axes: list["Axes"], steps: list[int], marked: int | None, label: str, size: Size) -> None:
    span = max(steps) - min(steps) or max(1, steps[0])
    every = -(-len(steps) // (14 if size is WIDE else 5))
    shown = sorted({*steps[::-every], *([marked] if marked is not None else [])})
    crowded = span / (16 if size is WIDE else 6)
    if marked is not None:
        shown = [step for step in shown if step == marked or abs(step - marked) > crowded]
    for axis in axes:
        axis.set_xlim(min(steps) - 0.05 * span, max(steps) + 0.05 * span)
        axis.set_xticks(shown)
        if marked is not None:
            axis.axvline(marked, color=INK, linewidth=1, alpha=0.45, linestyle=(0, (2, 3)), zorder=0)
    axes[-1].set_xlabel("checkpoint, optimizer step")
    if marked is not None:
        left = marked > min(steps) + 0.5 * span
        if not left:  # the label and the title would meet: the title moves up a line
            axes[0].set_title(axes[0].get_title(loc="left"), loc="left", color=INK, fontsize=size.font, pad=20)
        axes[0].annotate(
            label, (marked, 1), xycoords=("data", "axes fraction"), xytext=(-5 if left else 5, 3), color=INK,
            textcoords="offset points", ha="right" if left else "left", va="bottom", fontweight="bold",
        )  # fmt: skip


def _title(axis: "Axes", text: str) -> None:
    """What the vertical axis shows, written where it can be read without turning the head."""
    axis.set_title(text, loc="left", color=INK, fontsize=axis.xaxis.label.get_fontsize(), pad=6)


def _points(value: float, _position: float) -> str:
    return f"{100 * value:.0f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float, _position: float) -> str:
    return f"{100 * value:.0f}%"


def _plain_number(value: float, _position: float) -> str:
    return f"{value:g}"


def _figure(size: Size, panels: int) -> "Figure":
    """A figure outside pyplot: no global state, no display."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "font.size": size.font,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": FAINT,
            "axes.labelsize": size.font,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelsize": size.font,
            "ytick.labelsize": size.font,
            "legend.fontsize": size.font,
            "ytick.major.size": 0,
            "axes.unicode_minus": True,
        }
    ):
        figure = Figure(figsize=(size.width / 72, size.height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        ratios = [1.25, 1] if panels == 2 else [1]
        figure.subplots(panels, 1, sharex=True, height_ratios=ratios)
    return figure


def _svg(figure: "Figure", name: str, description: str) -> str:
    """The drawing as an element of the page: no XML header, no outside names, ids of its own, colours from the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = re.sub(
        r'<g id="((?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|LineCollection)_?\d*)"',
        "<g",
        text,
    )
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace(
        "<svg ", f'<svg class="plot {name.rsplit("-", 1)[1]}" role="img" aria-label="{description}" ', 1
    )
