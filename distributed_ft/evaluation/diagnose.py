"""What went wrong, from curves, scores, answers and the audit: each finding with its evidence, how sure it is, and the
settings to change; the most probable cause first. Pure.

One function a kind, by what it looks at: `diagnosis.data`, `.answers`, `.curves`, `.learning`, `.forgetting`; each says
in its constants from which figure on it speaks. `diagnosis.ranking` says in which order.
"""

from distributed_ft.evaluation.diagnosis import answers, curves, data, learning
from distributed_ft.evaluation.diagnosis.finding import Finding
from distributed_ft.evaluation.diagnosis.forgetting import forgetting
from distributed_ft.evaluation.diagnosis.ranking import ranked
from distributed_ft.evaluation.report.evidence import Evidence

__all__ = ["Finding", "diagnose"]

KINDS = (
    data.contamination,
    answers.cut_off,
    curves.instability,
    answers.chat_template,
    curves.learning_rate_too_low,
    data.insufficient_data,
    answers.memorisation,
    forgetting,
    answers.format_drift,
    learning.insufficient_capacity,
    learning.not_learned,
    learning.few_shot_is_enough,
    curves.overfitting,
)


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """Each kind at most once, ranked: see `diagnosis.ranking`."""
    found = [kind(evidence) for kind in KINDS]
    return ranked([finding for finding in found if finding is not None])
