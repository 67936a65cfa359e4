"""Whether the task was learned, and whether that was worth a training. Pure."""

from statistics import fmean

from distributed_ft.evaluation.diagnosis.curves import UNDERFIT, UNLEARNED_FALL, ends, fall, underfitted
from distributed_ft.evaluation.diagnosis.data import own_loss
from distributed_ft.evaluation.diagnosis.finding import Finding, higher_rate, more_of, ramp
from distributed_ft.evaluation.report.evidence import CheckpointScores, Difference, Evidence
from distributed_ft.evaluation.verdict import (
    WORTHWHILE_GAIN,
    best_scoring,
    percent,
    points,
    points_interval,
)

SAME_LOSS = 1.5
"""Validation loss at most this many times the training loss: more rows would not help."""


def not_learned(evidence: Evidence) -> Finding | None:
    judged = evidence.judged
    if judged is None or judged.versus_base is None or judged.versus_base.low > 0 or judged.task is None:
        return None
    if evidence.task and evidence.task.base and evidence.task.base.low > 0.9:
        return None  # nothing was left to learn
    best = best_scoring(evidence.checkpoints)
    if best is not None and best.versus_base is not None and best.versus_base.low > 0:
        return None  # an earlier or a later one has learned it, and something else kept it from being chosen
    gain = judged.versus_base
    measured = f"Step {judged.step} scores {percent(judged.task.score)}, {points(gain.mean)} points "
    measured += f"{points_interval(gain.low, gain.high)} against base."
    title, confidence = "The task was not learned", _no_gain(gain)
    figures = {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    curves = evidence.curves
    if not curves.smoothed:
        return Finding("not_learned", "problem", title, measured, (higher_rate(evidence),), confidence, figures)
    first, last = ends(curves)
    loss = f" The training loss went from {first:.3f} to {last:.3f}"
    if last > first * (1 - UNLEARNED_FALL):
        remedies = (higher_rate(evidence), "optim.epochs: more", f"{more_of(evidence)}, or method.type: full")
        told = f"{measured}{loss}: hardly at all."
        return Finding("not_learned", "problem", title, told, remedies, confidence, figures)
    remedies = (
        "evaluation.tasks: are the requests worded as the training rows are? See the sample answers below",
        "evaluation.tasks[].max_new_tokens: are answers cut off?",
        "optim.epochs: more, or data.train: more rows",
    )
    told = f"{measured}{loss}: the rows were fitted, and yet the held-out answers are no better."
    title = "The training data was fitted, the task was not learned"
    return Finding("not_learned", "problem", title, told, remedies, confidence, figures)


def _no_gain(gain: Difference) -> float:
    """Surer the smaller the gain that the interval leaves possible."""
    return ramp(-gain.high, -0.25, -WORTHWHILE_GAIN)


def insufficient_capacity(evidence: Evidence) -> Finding | None:
    """The loss fell and stayed high, on training and validation rows alike, and the task is not solved."""
    curves, judged = evidence.curves, evidence.judged
    if judged is None or not _no_worthwhile_gain(judged) or not underfitted(curves) or fall(curves) < UNLEARNED_FALL:
        return None
    first, last = ends(curves)
    if curves.validation_loss and curves.validation_loss[-1] > SAME_LOSS * own_loss(evidence, last):
        return None  # it fits the rows better than it should, not worse
    validation = f" (validation {curves.validation_loss[-1]:.3f})" if curves.validation_loss else ""
    middle = fmean(curves.loss[len(curves.loss) * 2 // 5 : len(curves.loss) * 3 // 5])
    method = evidence.config.get("method") or {}
    size = f"; method.rank is {method['rank']}" if isinstance(method.get("rank"), int) else ""
    score = f"; step {judged.step} scores {percent(judged.task.score)}" if judged.task else ""
    return Finding(
        "insufficient_capacity",
        "problem",
        "What is trained is too small for the task",
        f"The training loss went from {first:.3f} to {middle:.3f} half-way, and no further than {last:.3f}"
        f"{validation}: rows it has seen and rows it has not are fitted alike, and badly{size}{score}.",
        (
            f"{more_of(evidence)}, or method.type: full",
            "method.target_modules: all-linear",
            higher_rate(evidence),
            "optim.epochs: more, if the loss was still falling",
        ),
        ramp(last / first, UNDERFIT - 0.05, 3 * UNDERFIT),
        {"first_loss": first, "half_way_loss": middle, "last_loss": last},
    )


def _no_worthwhile_gain(checkpoint: CheckpointScores) -> bool:
    """Nothing that pays for a training is sure to have been gained, and there was something to gain."""
    gain, task = checkpoint.versus_base, checkpoint.task
    return gain is not None and task is not None and gain.low <= WORTHWHILE_GAIN and task.score < 0.9


def few_shot_is_enough(evidence: Evidence) -> Finding | None:
    judged = evidence.judged
    if judged is None or judged.versus_base is None or judged.versus_base.low <= 0:
        return None
    gain = judged.versus_few_shot
    if gain is None or gain.low > 0:
        return None
    return Finding(
        "few_shot_is_enough",
        "warning",
        "A few-shot prompt would have done as well",
        f"Tuned against base with {evidence.few_shot_examples or 'some'} examples in the prompt: "
        f"{points(gain.mean)} points {points_interval(gain.low, gain.high)} on {gain.n} items.",
        ("no training: put the examples in the prompt", "or evaluation.tasks: harder, or more, held-out items"),
        _no_gain(gain),
        {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "n": gain.n},
    )
