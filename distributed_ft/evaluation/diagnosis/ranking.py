"""In which order diagnoses are told: a cause before its effects, then the worse, then the surer one. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from distributed_ft.evaluation.diagnosis.finding import Finding

_FORGETTING = ("catastrophic_forgetting", "forgetting_over_budget")

EFFECTS: Final[dict[str, tuple[str, ...]]] = {
    # scores that are not what they seem come first: every other figure rests on them
    "contamination": ("memorisation", "few_shot_is_enough"),
    "answers_cut_off": ("not_learned", "few_shot_is_enough", "format_drift", "insufficient_capacity"),
    # an update that went wrong can break anything
    "instability": (
        "chat_template",
        "insufficient_capacity",
        "insufficient_data",
        "memorisation",
        "overfitting",
        "format_drift",
        "not_learned",
        *_FORGETTING,
    ),
    # answers that do not end, or were learned in another frame, are wrong on every task, the general ones too
    "chat_template": (
        "format_drift",
        "insufficient_capacity",
        "insufficient_data",
        "memorisation",
        "overfitting",
        "not_learned",
        *_FORGETTING,
    ),
    "learning_rate_too_low": ("insufficient_capacity", "not_learned"),
    # few rows are learned by heart; what is learned by heart overfits; what overfits helps no new item
    "insufficient_data": ("memorisation", "overfitting", "not_learned"),
    "memorisation": ("overfitting", "not_learned"),
    "insufficient_capacity": ("not_learned",),
    "format_drift": ("not_learned", "overfitting"),
    "overfitting": ("not_learned",),
}
"""What each finding can bring about by itself. Overfitting and forgetting are no cause of one another."""


def ranked(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, the most probable cause first, each with those of the others that would bring it about.

    The rule: no finding stands before one that is a cause of it (`EFFECTS`); of those that may come next, a problem
    before a warning; then the more confident one; then the order in which they were looked for.
    """
    ids = {finding.id for finding in found}
    causes = {name: tuple(c for c in EFFECTS if c in ids and name in EFFECTS[c]) for name in ids}
    left, told = list(found), list[Finding]()
    while left:
        waiting = {finding.id for finding in left}
        free = [finding for finding in left if not waiting.intersection(causes[finding.id])]
        following = min(free, key=lambda f: (f.severity != "problem", -f.confidence))  # min keeps the first of equals
        left.remove(following)
        told.append(replace(following, because_of=causes[following.id]))
    return tuple(told)
