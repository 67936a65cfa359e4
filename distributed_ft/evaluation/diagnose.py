"""What went wrong, from curves and scores: each finding with its evidence and the settings to change. Pure."""

import shlex
from dataclasses import dataclass
from statistics import median
from typing import Literal

from distributed_ft.evaluation.report.evidence import CheckpointScores, Curves, Evidence, Skill
from distributed_ft.evaluation.verdict import (
    bare_points,
    best_scoring,
    inside_budget,
    is_catastrophic,
    lost_share,
    percent,
    points,
    points_interval,
)

Severity = Literal["problem", "warning"]

OVERFITTING_RISE = 0.05
"""Validation loss this share above its minimum, …"""
OVERFITTING_RISE_NATS = 0.01
"""… and at least so many nats, while the training loss still falls."""
UNLEARNED_FALL = 0.1
"""A training loss that falls by less than this share has not fitted the data."""
SPIKE_FACTOR = 5.0
"""A step whose loss is this many times the median of the 20 steps before it, and over 0.5 nats above it, is a spike."""
SPIKE_NATS = 0.5
LOST_SKILL = 0.1
"""Skills named as lost dropped by at least 10 points."""


@dataclass(frozen=True)
class Finding:
    """`remedies` are settings to change, most promising first."""

    id: str
    severity: Severity
    title: str
    evidence: str
    remedies: tuple[str, ...]


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """Problems first, then warnings, each at most once."""
    found = [
        _cut_off(evidence),
        _forgetting(evidence),
        _instability(evidence),
        _not_learned(evidence),
        _few_shot_is_enough(evidence),
        _overfitting(evidence.curves),
    ]
    findings = [finding for finding in found if finding is not None]
    return tuple(sorted(findings, key=lambda finding: finding.severity != "problem"))


def _cut_off(evidence: Evidence) -> Finding | None:
    if not evidence.cut_off:
        return None
    told = "; ".join(f"{task}: {cut_off}" for task, cut_off in evidence.cut_off.items())
    names = [task["name"] for task in evidence.config.get("evaluation", {}).get("tasks", [])]
    settings = [
        f"'evaluation.tasks[{names.index(task)}].max_new_tokens={cut_off.longest + 1}'"  # and the end of the turn
        for task, cut_off in evidence.cut_off.items()
        if task in names
    ]
    remedy = " ".join(["dft eval", shlex.quote(evidence.path), *settings])
    return Finding("answers_cut_off", "problem", "Right answers are cut off, and scored 0", f"{told}.", (remedy,))


def _forgetting(evidence: Evidence) -> Finding | None:
    """About the judged checkpoint, or else about the best-scoring one, or else about any that forgot."""
    candidates = [evidence.judged, best_scoring(evidence.checkpoints), *reversed(evidence.checkpoints)]
    for checkpoint in candidates:
        if checkpoint is not None and is_catastrophic(checkpoint.forgetting, evidence.budget):
            return _catastrophic(evidence, checkpoint)
    judged = evidence.judged
    if judged is None or judged.forgetting is None or inside_budget(judged, evidence.budget):
        return None
    lost = judged.forgetting
    return Finding(
        "forgetting_over_budget",
        "problem" if lost.drop_low > evidence.budget else "warning",
        "It forgets more than the budget allows",
        f"Step {judged.step}: mean drop of {_drop(lost.mean_drop, lost.drop_low, lost.drop_high)} on {lost.n} general "
        f"items, the budget being {bare_points(evidence.budget)}{_named(evidence.skills)}.",
        _against_forgetting(evidence),
    )


def _catastrophic(evidence: Evidence, checkpoint: CheckpointScores) -> Finding:
    lost = checkpoint.forgetting
    assert lost is not None
    judged = checkpoint.step == evidence.judged_step
    return Finding(
        "catastrophic_forgetting",
        "problem" if judged or evidence.best_step is None else "warning",
        "Catastrophic forgetting" if judged else f"Catastrophic forgetting at step {checkpoint.step}",
        f"Step {checkpoint.step}: mean drop of {_drop(lost.mean_drop, lost.drop_low, lost.drop_high)} on {lost.n} "
        f"general items (budget {bare_points(evidence.budget)}); {lost_share(lost)}"
        f"{_named(evidence.skills) if judged else ''}.",
        _against_forgetting(evidence),
    )


def _against_forgetting(evidence: Evidence) -> tuple[str, ...]:
    train = evidence.config.get("data", {}).get("train")
    mixed = isinstance(train, list) and len(train) > 1
    mix = (
        "data.train: raise the weight of the general data (0.15 to 0.3)"
        if mixed
        else "data.train: mix in 10 to 20% general data, [{path: yours, weight: 0.85}, {path: general, weight: 0.15}]"
    )
    remedies = [
        mix,
        _lower_rate(evidence),
        "optim.epochs: fewer, or checkpoint.every: smaller, to catch an earlier one",
    ]
    rank = evidence.config.get("method", {}).get("rank")
    if isinstance(rank, int) and rank > 1:
        remedies.insert(2, f"method.rank: lower, for example {rank // 2} (is {rank})")
    return tuple(remedies)


def _more_of(evidence: Evidence) -> str:
    """What gives the method of the run more to learn with."""
    virtual = "method.num_virtual_tokens: more"
    sizes = {"prefix": virtual, "prompt": virtual, "adapter": "method.reduction_factor: smaller"}
    return sizes.get(str(evidence.config.get("method", {}).get("type")), "method.rank: higher")


def _overfitting(curves: Curves) -> Finding | None:
    """Validation loss rises from its minimum while the training loss keeps falling."""
    if len(curves.validation_loss) < 3 or not curves.smoothed:
        return None
    lowest = min(curves.validation_loss)
    at = curves.validation_steps[curves.validation_loss.index(lowest)]
    last_step, last = curves.validation_steps[-1], curves.validation_loss[-1]
    if last < lowest * (1 + OVERFITTING_RISE) or last < lowest + OVERFITTING_RISE_NATS:
        return None
    before, after = _smoothed_at(curves, at), _smoothed_at(curves, last_step)
    if after >= before:
        return None
    return Finding(
        "overfitting",
        "warning",
        "Overfitting",
        f"Validation loss rose from {lowest:.3f} (step {at}) to {last:.3f} (step {last_step}) while the training loss "
        f"fell from {before:.3f} to {after:.3f}: it learns the rows, no longer the task.",
        (
            f"take a checkpoint near step {at}",
            "optim.epochs: fewer",
            "data.train: more, and more varied, rows",
            "method.dropout: 0.05 to 0.1",
        ),
    )


def _not_learned(evidence: Evidence) -> Finding | None:
    judged = evidence.judged
    if judged is None or judged.versus_base is None or judged.versus_base.low > 0 or judged.task is None:
        return None
    if evidence.task and evidence.task.base and evidence.task.base.low > 0.9:
        return None  # nothing was left to learn
    gain = judged.versus_base
    measured = f"Step {judged.step} scores {percent(judged.task.score)}, {points(gain.mean)} points "
    measured += f"{points_interval(gain.low, gain.high)} against base."
    curves = evidence.curves
    if not curves.smoothed:
        return Finding("not_learned", "problem", "The task was not learned", measured, (_higher_rate(evidence),))
    first, last = curves.smoothed[0], curves.smoothed[-1]
    loss = f" The training loss went from {first:.3f} to {last:.3f}"
    if last > first * (1 - UNLEARNED_FALL):
        remedies = (_higher_rate(evidence), "optim.epochs: more", f"{_more_of(evidence)}, or method.type: full")
        return Finding(
            "not_learned", "problem", "The task was not learned", f"{measured}{loss}: hardly at all.", remedies
        )
    remedies = (
        "evaluation.tasks: are the requests worded as the training rows are? See the sample answers below",
        "evaluation.tasks[].max_new_tokens: are answers cut off?",
        "optim.epochs: more, or data.train: more rows",
    )
    fitted = f"{measured}{loss}: the rows were fitted, and yet the held-out answers are no better."
    return Finding("not_learned", "problem", "The training data was fitted, the task was not learned", fitted, remedies)


def _few_shot_is_enough(evidence: Evidence) -> Finding | None:
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
    )


def _instability(evidence: Evidence) -> Finding | None:
    curves = evidence.curves
    spikes = [
        step
        for i, (step, loss) in enumerate(zip(curves.steps, curves.loss, strict=True))
        if i >= 20 and loss > SPIKE_FACTOR * (usual := median(curves.loss[i - 20 : i])) and loss > usual + SPIKE_NATS
    ]
    if not curves.skipped and not spikes:
        return None
    parts = []
    if curves.skipped:
        parts.append(
            f"{_count(len(curves.skipped), 'step')} skipped, loss or gradient not finite ({_some(curves.skipped)})"
        )
    if spikes:
        parts.append(f"{_count(len(spikes), 'loss spike')} ({_some(spikes)})")
    often = len(curves.skipped) >= 5 or len(spikes) >= 5
    remedies = [_lower_rate(evidence), "optim.warmup_ratio: 0.1 or more", "optim.max_grad_norm: 0.3"]
    if curves.skipped and evidence.config.get("model", {}).get("dtype") == "bf16":
        remedies.append("model.dtype: fp32, to see whether it is the precision")
    evidence_text = "; ".join(parts) + "."
    return Finding(
        "instability", "problem" if often else "warning", "Unstable training", evidence_text, tuple(remedies)
    )


def _named(skills: tuple[Skill, ...]) -> str:
    lost = [s for s in sorted(skills, key=lambda s: s.drop, reverse=True) if s.drop >= LOST_SKILL]
    if not lost:
        return ""
    named = ", ".join(f"{s.name} ({percent(s.before)} → {percent(s.after)})" for s in lost[:4])
    return f". Most lost: {named}" + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")


def _drop(mean: float, low: float, high: float) -> str:
    return f"{bare_points(mean)} points [{bare_points(low)}, {bare_points(high)}]"


def _smoothed_at(curves: Curves, step: int) -> float:
    nearest = min(range(len(curves.steps)), key=lambda i: abs(curves.steps[i] - step))
    return curves.smoothed[nearest]


def _lower_rate(evidence: Evidence) -> str:
    rate = evidence.config.get("optim", {}).get("lr")
    return f"optim.lr: lower, for example {rate / 3:.1g} (is {rate:g})" if rate else "optim.lr: lower"


def _higher_rate(evidence: Evidence) -> str:
    rate = evidence.config.get("optim", {}).get("lr")
    return f"optim.lr: higher, for example {rate * 3:.1g} (is {rate:g})" if rate else "optim.lr: higher"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(steps: tuple[int, ...] | list[int]) -> str:
    shown = ", ".join(str(step) for step in steps[:5])
    return f"step {shown}" + (", …" if len(steps) > 5 else "")
