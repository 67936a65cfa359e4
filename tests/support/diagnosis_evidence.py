"""Hand-made evidence for the diagnosis: healthy unless told otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed_ft.evaluation.report.evidence import (
    CheckpointScores,
    Curves,
    Deviation,
    Difference,
    Estimate,
    Evidence,
    Forgetting,
    TaskAnswers,
    Training,
)

BUDGET = 0.05
STEPS = 200
FALLING = [2.0 * 0.98**i for i in range(STEPS)]
Held = Sequence[tuple[int, float]]  # (step, validation loss)


def estimate(score: float, n: int = 200) -> Estimate:
    return Estimate(score, 0.02, max(0.0, score - 0.04), min(1.0, score + 0.04), n)


def gain(mean: float, half: float = 0.05) -> Difference:
    return Difference(mean, mean - half, mean + half, 200, 0.07)


def lost(mean: float, half: float = 0.02, known: float | None = None) -> Forgetting:
    of_known = max(0.0, mean) if known is None else known
    return Forgetting(
        of_known, of_known - half, of_known + half, of_known, mean, mean - half, mean + half, 400, 380, 0.95
    )


def checkpoint(
    step: int = STEPS,
    score: float = 0.9,
    over_base: float | None = None,
    over_prompt: float | None = 0.5,
    forgot: float | None = 0.0,
) -> CheckpointScores:
    """`over_base` is `score` unless told: a base that scores 0."""
    return CheckpointScores(
        step,
        "complete",
        estimate(score),
        gain(score if over_base is None else over_base),
        None if over_prompt is None else gain(over_prompt),
        None,
        None if forgot is None else lost(forgot),
    )


def curve(loss: Sequence[float] = FALLING, validation: Held = (), skipped: tuple[int, ...] = ()) -> Curves:
    steps = tuple(range(1, len(loss) + 1))
    at, held_out = tuple(s for s, _ in validation), tuple(v for _, v in validation)
    return Curves(steps, tuple(loss), tuple(loss), 1, at, held_out, skipped)


def answers(step: int = STEPS, wrong: int = 20, **counts: Any) -> TaskAnswers:
    found: dict[str, Any] = {
        "empty": 0,
        "ran_on": 0,
        "base_ran_on": 0,
        "as_base": 0,
        "from_training": 0,
        "references_in_training": 0,
    }
    found |= {"training_known": True} | counts
    return TaskAnswers("tickets", step, 200, wrong, **found)


def deviation(count: int, **more: Any) -> Deviation:
    found: dict[str, Any] = {
        "start": 0.8,
        "character": 30,
        "expected": "…/ ok",
        "found": "…| ok",
        "same_words": count,
        "in_base": 0,
    }
    return Deviation(count, **{**found, "in_training": 1.0, **more})


def audit(rows: int = 600, copies: int = 0, seen: int = 0, items: int = 200, **more: Any) -> dict[str, Any]:
    """`data/report.json`, of one training file."""
    file = {
        "rows": rows,
        "duplicates": {"clusters": 1 if copies else 0, "rows": copies + (1 if copies else 0)},
        "contamination": {"tickets": {"items": items, "seen": seen, "rows": seen}},
    }
    source = {"path": "train.jsonl", "rows_used": rows, "weight": None, "fraction": None}
    return {"statistics": {"train.jsonl": file}, "sources": [source], "rows_used": rows, "findings": [], **more}


def evidence(
    *checkpoints: CheckpointScores,
    curves: Curves | None = None,
    data: Mapping[str, Any] | None = None,
    answers: Sequence[TaskAnswers] = (),
    best: int | None = None,
    judged: int | None = None,
    **more: Any,
) -> Evidence:
    """The last checkpoint is the judged one unless told otherwise; without any, there is a healthy one."""
    rows = checkpoints or (checkpoint(),)
    return Evidence(
        name="run", path="runs/run", config={"optim": {"lr": 1e-3}, "method": {"rank": 16}}, environment={},
        data=dict(data or audit()), budget=BUDGET, few_shot_examples=4, no_prompt=None, tasks=(), task=None,
        general=None, checkpoints=rows, best_step=best, selection_reason=None,
        judged_step=rows[-1].step if judged is None else judged, skills=(), samples=(),
        curves=curves or curve(), training=Training(epochs=5.0), evaluation_seconds=0.0, cut_off={}, missing=(),
        answers=tuple(answers), **more,
    )  # fmt: skip
