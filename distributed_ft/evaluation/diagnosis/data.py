"""What the training data did to the result: test items in it, or too few rows of it. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from distributed_ft.evaluation.diagnosis.curves import smoothed_at
from distributed_ft.evaluation.diagnosis.finding import Finding, ramp
from distributed_ft.evaluation.report.evidence import Evidence
from distributed_ft.evaluation.verdict import best_scoring, percent

CONTAMINATED = 0.01
"""From this share of a suite's items on, training rows that hold them can move its score by a point; …"""
GROSSLY_CONTAMINATED = 0.05
"""… from this share on, by as much as a gain worth having."""
FEW_ROWS, TOO_FEW_ROWS = 100, 25
"""Different training rows. The least that teach as much as a style are about 100 (Zhou et al. 2023, arXiv:2305.11206,
which used 1,000); 25 teach next to nothing."""
GENERALISATION_GAP = 2.0
"""Validation loss over training loss, from which on the rows were learned and not what they have in common."""
MOSTLY_COPIES = 0.5
"""Share of the rows that are copies of others, from which on that is what is wrong with them."""
DONE = 0.9
"""A task whose score reaches this has been learned, from however few rows."""


def contamination(evidence: Evidence) -> Finding | None:
    """Items that the verdict rests on and that training rows hold; validation rows only steer."""
    seen = {name: (hits, items) for name, hits, items in _seen(evidence) if hits >= CONTAMINATED * items}
    if not seen:
        return None
    share = max(hits / items for hits, items in seen.values())
    told = ", ".join(f"{hits:,} of the {items:,} items of {name}" for name, (hits, items) in seen.items())
    return Finding(
        "contamination",
        "problem" if share >= GROSSLY_CONTAMINATED else "warning",
        "The training data holds what the model is judged by",
        f"Training rows contain {told} (the same prompt, or most of its word sequences; see the data section). A score "
        "on them is not one on unseen items.",
        (
            "data.train: remove these rows (dft data prepare does), and train again",
            "evaluation.tasks: other items, that no training row holds",
        ),
        ramp(share, 0, GROSSLY_CONTAMINATED),
        {f"seen_of_{name}": hits for name, (hits, _) in seen.items()} | {"share": share},
    )


def _seen(evidence: Evidence) -> Iterator[tuple[str, int, int]]:
    """(suite, items that are in training rows, items), the worst training file of each suite."""
    statistics = evidence.data.get("statistics")
    worst: dict[str, tuple[int, int]] = {}
    for file in statistics.values() if isinstance(statistics, dict) else ():
        for name, counts in (file.get("contamination") or {}).items():
            if name != "validation" and counts.get("items"):
                worst[name] = max(worst.get(name, (0, 0)), (counts.get("seen", 0), counts["items"]))
    return ((name, hits, items) for name, (hits, items) in worst.items())


def insufficient_data(evidence: Evidence) -> Finding | None:
    """Few rows, fitted, and never good at the task.

    Few rows that taught an earlier checkpoint more than the newest one are overfitting: enough to learn from, looked at
    too often.
    """
    rows, judged, curves = _distinct_rows(evidence), evidence.judged, evidence.curves
    if copied(evidence) >= MOSTLY_COPIES:
        return None  # the file is not short, it repeats itself: see `answers.memorisation`
    if rows is None or rows > FEW_ROWS or judged is None or judged.task is None or judged.task.score >= DONE:
        return None
    best = best_scoring(evidence.checkpoints)
    newest = max((c for c in evidence.checkpoints if c.task), key=lambda c: c.step, default=None)
    if best and newest and best.task and newest.task and best.task.low > newest.task.score:
        return None
    gap, losses = 0.0, ""
    if curves.validation_loss and curves.smoothed:
        fitted = own_loss(evidence, smoothed_at(curves, curves.validation_steps[-1]))
        gap = curves.validation_loss[-1] / max(fitted, 1e-3)
        losses = f", with a training loss of {fitted:.3f} and a validation loss of {curves.validation_loss[-1]:.3f}"
        if gap < GENERALISATION_GAP:
            return None
    sized = [f for f in evidence.data.get("findings") or [] if isinstance(f, dict) and f.get("id") == "size"]
    audit = f" The data audit: {sized[0].get('message')}." if sized else ""
    return Finding(
        "insufficient_data",
        "problem",
        "Too few rows to learn the task from",
        f"{rows:,} different rows were trained on, {evidence.training.epochs or 0:.3g} times each{losses}; step "
        f"{judged.step} scores {percent(judged.task.score)} on held-out items.{audit}",
        (
            f"data.train: more rows, some hundreds at least (is {rows})",
            "evaluation.few_shot: with so few rows, compare with all of them in the prompt",
        ),
        ramp(FEW_ROWS - rows, 0, FEW_ROWS - TOO_FEW_ROWS),
        {"rows": rows, "score": judged.task.score, "gap": gap},
    )


def copied(evidence: Evidence) -> float:
    """Share of the training rows that are exact or near copies of another one of them, by the audit; of the file that
    has the most of them."""
    statistics = evidence.data.get("statistics")
    files = statistics.values() if isinstance(statistics, dict) else ()
    return max((_copies(file) / file["rows"] for file in files if file.get("rows")), default=0.0)


def own_loss(evidence: Evidence, loss: float) -> float:
    """A training loss, of the rows that teach the task alone: the rows mixed in for replay are known already, and their
    loss is next to nothing, so what is left is that of the others. (An upper bound, by rows.)"""
    sources = [s for s in evidence.data.get("sources") or [] if isinstance(s, dict)]
    mixed = sum(s.get("drawn_share") or 0.0 for s in sources if s.get("fraction") is not None)
    return loss / (1 - mixed) if mixed < 1 else loss


def _distinct_rows(evidence: Evidence) -> int | None:
    """Of the sources that teach the task: not those of which a fraction, or a small weight, is mixed in."""
    sources = [s for s in evidence.data.get("sources") or [] if isinstance(s, dict) and s.get("rows_used")]
    own = [s for s in sources if s.get("fraction") is None]
    weights = [s["weight"] for s in own if s.get("weight")]
    own = [s for s in own if not weights or (s.get("weight") or 0) >= max(weights) / 2]
    if not own:
        used = evidence.data.get("rows_used")
        return used if isinstance(used, int) else None
    statistics = evidence.data.get("statistics")
    known = statistics if isinstance(statistics, dict) else {}
    return sum(int(s["rows_used"]) - _copies(known.get(s.get("path")) or {}) for s in own)


def _copies(file: Mapping[str, Any]) -> int:
    duplicates = file.get("duplicates")
    return int(duplicates.get("rows", 0) - duplicates.get("clusters", 0)) if isinstance(duplicates, dict) else 0
