"""What the loss curves say: instability, a learning rate that is too low, overfitting. Pure."""

from statistics import fmean, median

from distributed_ft.evaluation.diagnosis.finding import Finding, count, higher_rate, lower_rate, ramp, some
from distributed_ft.evaluation.report.evidence import CheckpointScores, Curves, Evidence
from distributed_ft.evaluation.verdict import best_scoring, lost_share, percent

OVERFITTING_RISE = 0.05
"""Validation loss this share above its minimum, …"""
OVERFITTING_RISE_NATS = 0.01
"""… and at least so many nats, while the training loss still falls."""
UNLEARNED_FALL = 0.1
"""A training loss that falls by less than this share has not fitted the data."""
STOOD_STILL = 0.02
"""A validation loss that changed by less than this share, up or down, did not change."""
KNOWN_LOSS = 0.1
"""… unless it was below so many nats from the start: there was nothing to fit."""
SAME_ANSWERS = 0.9
"""A model that still answers so many items word for word as the base does was hardly moved."""
SPIKE_FACTOR = 5.0
"""A step whose loss is this many times the median of the 20 steps before it, and over 0.5 nats above it, is a spike."""
SPIKE_NATS = 0.5
OFTEN = 5
"""From so many spikes or skipped steps on it is a problem, not an incident."""
DIVERGED_NATS = 1.0
"""A training loss that ends this far above its lowest level (and twice as high) has diverged, …"""
UNDERFIT, UNDERFIT_NATS = 0.15, 0.2
"""A training loss that ends at this share of its first value or above, and at so many nats, has not fitted the rows."""
DESTROYED = 0.8
"""Of what the base had right, a model that lost so much and yet did not fit the rows was not taught but destroyed."""


def instability(evidence: Evidence) -> Finding | None:
    curves = evidence.curves
    spikes = [
        step
        for i, (step, loss) in enumerate(zip(curves.steps, curves.loss, strict=True))
        if i >= 20 and loss > SPIKE_FACTOR * (usual := median(curves.loss[i - 20 : i])) and loss > usual + SPIKE_NATS
    ]
    diverged = _divergence(curves) or _destruction(evidence)
    if not curves.skipped and not spikes and diverged is None:
        return None
    parts = []
    if diverged is not None:
        parts.append(diverged)
    if curves.skipped:
        parts.append(
            f"{count(len(curves.skipped), 'step')} skipped, loss or gradient not finite ({some(curves.skipped)})"
        )
    if spikes:
        parts.append(f"{count(len(spikes), 'loss spike')} ({some(spikes)})")
    often = diverged is not None or len(curves.skipped) >= OFTEN or len(spikes) >= OFTEN
    remedies = [lower_rate(evidence, 10 if often else 3), "optim.warmup_ratio: 0.1 or more", "optim.max_grad_norm: 0.3"]
    if curves.skipped and evidence.config.get("model", {}).get("dtype") == "bf16":
        remedies.append("model.dtype: fp32, to see whether it is the precision")
    return Finding(
        "instability",
        "problem" if often else "warning",
        "Unstable training" if diverged is None else "Unstable training: the loss diverged",
        "; ".join(parts) + ".",
        tuple(remedies),
        0.95 if diverged is not None else ramp(len(curves.skipped) + len(spikes), 1, 2 * OFTEN),
        {"skipped": len(curves.skipped), "spikes": len(spikes), "diverged": float(diverged is not None)},
    )


def _divergence(curves: Curves) -> str | None:
    """Where the loss ended, or None if it did not diverge."""
    if len(curves.loss) < 10:
        return None
    tail = median(curves.loss[-max(3, len(curves.loss) // 10) :])
    lowest = min(curves.smoothed)
    if tail <= 2 * lowest or tail <= lowest + DIVERGED_NATS:
        return None
    at = curves.steps[curves.smoothed.index(lowest)]
    return f"the training loss fell to {lowest:.2f} (step {at}) and ended at {tail:.2f}"


def _destruction(evidence: Evidence) -> str | None:
    """Steps that were too large: the model changed so much that nothing is left of it, and the rows are not fitted."""
    lost = [c for c in evidence.checkpoints if c.forgetting is not None and (c.forgetting.of_known or 0) >= DESTROYED]
    if not lost or not underfitted(evidence.curves):
        return None
    first, last = ends(evidence.curves)
    worst = lost[-1].forgetting
    assert worst is not None
    return (
        f"the training loss went from {first:.2f} to {last:.2f} and no further, while {lost_share(worst)} "
        f"(step {lost[-1].step}): steps so large destroy the model"
    )


def ends(curves: Curves) -> tuple[float, float]:
    """Mean training loss of the first and of the last tenth of the steps (three at least): a step alone says little."""
    size = min(len(curves.loss), max(3, len(curves.loss) // 10))
    return fmean(curves.loss[:size]), fmean(curves.loss[-size:])


def fall(curves: Curves) -> float:
    """By which share of its first value the training loss fell; negative when it rose.

    A validation loss is always of the same rows: where it stood still from before half of the steps on, what the
    training loss did was the scatter of its batches.
    """
    first, last = ends(curves)
    if len(curves.validation_loss) > 1 and curves.validation_steps[0] <= curves.steps[-1] / 2:
        held_out = 1 - curves.validation_loss[-1] / max(curves.validation_loss[0], 1e-9)
        if abs(held_out) < STOOD_STILL and curves.validation_loss[0] > first / 2:
            return held_out
    return 1 - last / first if first > 0 else 0.0


def underfitted(curves: Curves) -> bool:
    """Whether the training loss stayed high."""
    if len(curves.loss) < 10:
        return False
    first, last = ends(curves)
    return last >= UNDERFIT * first and last >= UNDERFIT_NATS


def learning_rate_too_low(evidence: Evidence) -> Finding | None:
    """The loss hardly moved, in a run that gained nothing; a loss that was low from the start had nowhere to go."""
    curves, judged = evidence.curves, evidence.judged
    gained = judged is not None and judged.versus_base is not None and judged.versus_base.low > 0
    if gained or len(curves.loss) < 3 or _divergence(curves) is not None or _destruction(evidence) is not None:
        return None
    (first, last), fell = ends(curves), fall(curves)
    if len(curves.skipped) >= OFTEN or fell < -UNLEARNED_FALL:
        return None  # updates that were too large, or a loss that rose: the rate is anything but low
    same = min((answers.as_base / answers.n for answers in evidence.answers), default=0.0)
    if first < KNOWN_LOSS or not (fell < UNLEARNED_FALL or same >= SAME_ANSWERS):
        return None
    rate = evidence.config.get("optim", {}).get("lr")
    told = f"The training loss went from {first:.3f} to {last:.3f} in {count(len(curves.steps), 'step')}"
    if len(curves.validation_loss) > 1:
        told += f", the validation loss from {curves.validation_loss[0]:.3f} to {curves.validation_loss[-1]:.3f}"
    told += f", at a learning rate of {rate:g}" if rate else ""
    told += f"; {percent(same)} of the answers are word for word those of the base" if same else ""
    moved = UNLEARNED_FALL - fell + (UNLEARNED_FALL / 2 if same >= SAME_ANSWERS else 0.0)
    return Finding(
        "learning_rate_too_low",
        "problem",
        "Hardly anything was learned: the learning rate is too low, or the run too short",
        f"{told}.",
        (higher_rate(evidence, 100 if fell < UNLEARNED_FALL / 4 else 10), "optim.epochs: more"),
        ramp(moved, 0, UNLEARNED_FALL),
        {"first_loss": first, "last_loss": last, "fall": fell, "as_base": same},
    )


def overfitting(evidence: Evidence) -> Finding | None:
    """Validation loss rises from its minimum while the training loss keeps falling. Never said of general skills."""
    curves = evidence.curves
    if len(curves.validation_loss) < 3 or not curves.smoothed:
        return None
    lowest = min(curves.validation_loss)
    at = curves.validation_steps[curves.validation_loss.index(lowest)]
    last_step, last = curves.validation_steps[-1], curves.validation_loss[-1]
    if last < lowest * (1 + OVERFITTING_RISE) or last < lowest + OVERFITTING_RISE_NATS:
        return None
    before, after = smoothed_at(curves, at), smoothed_at(curves, last_step)
    if after >= before:
        return None
    best, newest = best_scoring(evidence.checkpoints), _newest_scored(evidence.checkpoints)
    told = (
        f"Validation loss rose from {lowest:.3f} (step {at}) to {last:.3f} (step {last_step}) while the training loss "
        f"fell from {before:.3f} to {after:.3f}: it learns the rows, no longer the task."
    )
    worse = 0.0
    if best and newest and best.task and newest.task and best.step < newest.step:
        worse = best.task.score - newest.task.score
        if worse > 0:
            told += f" On the task, step {best.step} scores {percent(best.task.score)}, step {newest.step} "
            told += f"{percent(newest.task.score)}."
    past = evidence.judged_step is not None and evidence.judged_step > at
    return Finding(
        "overfitting",
        "problem" if past and last > lowest * (1 + 4 * OVERFITTING_RISE) else "warning",
        "Overfitting",
        told,
        (
            f"take a checkpoint near step {at}",
            "optim.epochs: fewer",
            "data.train: more, and more varied, rows",
            "method.dropout: 0.05 to 0.1",
        ),
        ramp(last / lowest - 1, OVERFITTING_RISE, 10 * OVERFITTING_RISE) if lowest > 0 else 0.99,
        {"lowest": lowest, "lowest_step": at, "last": last, "train_before": before, "train_after": after,
         "score_lost": worse},
    )  # fmt: skip


def _newest_scored(checkpoints: tuple[CheckpointScores, ...]) -> CheckpointScores | None:
    return max((c for c in checkpoints if c.task is not None), key=lambda c: c.step, default=None)


def smoothed_at(curves: Curves, step: int) -> float:
    nearest = min(range(len(curves.steps)), key=lambda i: abs(curves.steps[i] - step))
    return curves.smoothed[nearest]
