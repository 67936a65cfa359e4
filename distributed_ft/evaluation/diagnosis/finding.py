"""One diagnosis: what it is, the figures that say so, how sure it is, and the settings to change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distributed_ft.evaluation.report.evidence import Evidence

Severity = Literal["problem", "warning"]

CALLED, CERTAIN = 0.5, 0.99
"""Confidence at the threshold from which on a thing is called at all, and where the figures leave no other reading."""


@dataclass(frozen=True)
class Finding:
    """`remedies` are settings to change, most promising first.

    `confidence` in [0.5, 0.99] says how far the figures lie past the threshold (`ramp`), not a probability of a model.
    `figures` are the numbers of `evidence`, for programs. `because_of` are ids of other findings of this run that
    would bring this one about (`ranking`).
    """

    id: str
    severity: Severity
    title: str
    evidence: str
    remedies: tuple[str, ...]
    confidence: float = CALLED
    figures: Mapping[str, float] = field(default_factory=dict)
    because_of: tuple[str, ...] = ()


def ramp(value: float, called: float, certain: float) -> float:
    """Confidence that rises in a line from 0.5 where `value` is `called` to 0.99 where it is `certain`, and stays."""
    share = (value - called) / (certain - called)
    return round(CALLED + (CERTAIN - CALLED) * min(1.0, max(0.0, share)), 2)


# --- settings that several findings change ---------------------------------------------------------------------------


def lower_rate(evidence: Evidence, by: float = 3) -> str:
    rate = evidence.config.get("optim", {}).get("lr")
    return f"optim.lr: lower, for example {rate / by:.1g} (is {rate:g})" if rate else "optim.lr: lower"


def higher_rate(evidence: Evidence, by: float = 3) -> str:
    rate = evidence.config.get("optim", {}).get("lr")
    return f"optim.lr: higher, for example {rate * by:.1g} (is {rate:g})" if rate else "optim.lr: higher"


def more_of(evidence: Evidence) -> str:
    """What gives the method of the run more to learn with."""
    virtual = "method.num_virtual_tokens: more"
    sizes = {"prefix": virtual, "prompt": virtual, "adapter": "method.reduction_factor: smaller"}
    return sizes.get(str(evidence.config.get("method", {}).get("type")), "method.rank: higher")


# --- words -----------------------------------------------------------------------------------------------------------


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(steps: tuple[int, ...] | list[int]) -> str:
    shown = ", ".join(str(step) for step in steps[:5])
    return f"step {shown}" + (", …" if len(steps) > 5 else "")
