"""General skills that were lost. Pure."""

from distributed_ft.evaluation.diagnosis.finding import Finding, lower_rate, ramp
from distributed_ft.evaluation.report.evidence import CheckpointScores, Evidence, Forgetting, Skill
from distributed_ft.evaluation.verdict import (
    CATASTROPHIC_RATE,
    bare_points,
    best_scoring,
    inside_budget,
    is_catastrophic,
    lost_share,
    percent,
)

LOST_SKILL = 0.1
"""Skills named as lost dropped by at least 10 points."""


def forgetting(evidence: Evidence) -> Finding | None:
    """About the judged checkpoint, or else about the best-scoring one, or else about any that forgot.

    What one before a judged checkpoint lost that kept its general skills was learned again, and is no loss.
    """
    candidates = [evidence.judged, best_scoring(evidence.checkpoints), *reversed(evidence.checkpoints)]
    kept_from = evidence.judged_step if evidence.best_step == evidence.judged_step else None
    for checkpoint in candidates:
        if checkpoint is None or (kept_from is not None and checkpoint.step < kept_from):
            continue
        if is_catastrophic(checkpoint.forgetting, evidence.budget):
            return _catastrophic(evidence, checkpoint)
    judged = evidence.judged
    if judged is None or judged.forgetting is None or inside_budget(judged, evidence.budget):
        return None
    lost = judged.forgetting
    beyond_doubt = lost.drop_low > evidence.budget
    return Finding(
        "forgetting_over_budget",
        "problem" if beyond_doubt else "warning",
        "It forgets more than the budget allows",
        f"Step {judged.step}: mean drop of {_drop(lost)} on {lost.n} general "
        f"items, the budget being {bare_points(evidence.budget)}{_named(evidence.skills)}.",
        _remedies(evidence),
        ramp(lost.drop_low, 2 * evidence.budget - lost.mean_drop, evidence.budget),
        {"mean_drop": lost.mean_drop, "budget": evidence.budget},
    )


def _catastrophic(evidence: Evidence, checkpoint: CheckpointScores) -> Finding:
    lost = checkpoint.forgetting
    assert lost is not None
    judged = checkpoint.step == evidence.judged_step
    share = lost.rate if lost.of_known is None else lost.of_known
    return Finding(
        "catastrophic_forgetting",
        "problem" if judged or evidence.best_step is None else "warning",
        "Catastrophic forgetting" if judged else f"Catastrophic forgetting at step {checkpoint.step}",
        f"Step {checkpoint.step}: mean drop of {_drop(lost)} on {lost.n} "
        f"general items (budget {bare_points(evidence.budget)}); {lost_share(lost)}"
        f"{_named(evidence.skills) if judged else ''}.",
        _remedies(evidence),
        ramp(share, CATASTROPHIC_RATE - 0.1, 2 * CATASTROPHIC_RATE),
        {"step": checkpoint.step, "mean_drop": lost.mean_drop, "lost_of_known": share, "budget": evidence.budget},
    )


def _remedies(evidence: Evidence) -> tuple[str, ...]:
    train = evidence.config.get("data", {}).get("train")
    mixed = isinstance(train, list) and len(train) > 1
    mix = (
        "data.train: raise the weight of the general data (0.15 to 0.3)"
        if mixed
        else "data.train: mix in 10 to 20% general data, [{path: yours, weight: 0.85}, {path: general, weight: 0.15}]"
    )
    remedies = [mix, lower_rate(evidence), "optim.epochs: fewer, or checkpoint.every: smaller, to catch an earlier one"]
    rank = evidence.config.get("method", {}).get("rank")
    if isinstance(rank, int) and rank > 1:
        remedies.insert(2, f"method.rank: lower, for example {rank // 2} (is {rank})")
    return tuple(remedies)


def _named(skills: tuple[Skill, ...]) -> str:
    lost = [s for s in sorted(skills, key=lambda s: s.drop, reverse=True) if s.drop >= LOST_SKILL]
    if not lost:
        return ""
    named = ", ".join(f"{s.name} ({percent(s.before)} → {percent(s.after)})" for s in lost[:4])
    return f". Most lost: {named}" + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")


def _drop(lost: Forgetting) -> str:
    return f"{bare_points(lost.mean_drop)} points [{bare_points(lost.drop_low)}, {bare_points(lost.drop_high)}]"
