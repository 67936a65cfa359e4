"""The items that went one way or the other, side by side: what a person reads to believe a number."""

from collections.abc import Sequence
from typing import Literal

from distributed_ft.evaluation.report.evidence import Answer, SampleGroup, SideBySide
from distributed_ft.evaluation.report.scores import BASE, FEW_SHOT, RIGHT, Scores
from distributed_ft.records import Sample

SHOWN = 3  # items of each kind


def side_by_side(scores: Scores, model: str | None, tasks: Sequence[str]) -> tuple[SampleGroup, ...]:
    """Items of `tasks` fixed, broken and still wrong, and general items forgotten, each kind in the task's order."""
    task = [row for name in tasks for row in _rows(scores, name, model)]
    general = [row for name in scores.tasks("general") for row in _rows(scores, name, model)]
    return tuple(
        group
        for group in (
            _group("fixed", [r for r in task if r.base and not r.base.right and r.tuned.right]),
            _group("broken", [r for r in task if r.base and r.base.right and not r.tuned.right]),
            _group("still_wrong", [r for r in task if not (r.base and r.base.right) and not r.tuned.right]),
            _group("forgotten", [r for r in general if r.base and r.base.right and not r.tuned.right]),
        )
        if group.total
    )


def _rows(scores: Scores, task: str, model: str | None) -> list[SideBySide]:
    base = {sample.doc_hash: sample for sample in scores.samples(BASE, task)}
    few_shot = {sample.doc_hash: sample for sample in scores.samples(FEW_SHOT, task)}
    return [
        SideBySide(
            task=task,
            id=sample.id,
            group=sample.group,
            request=request_text(sample.request),
            reference=sample.reference,
            base=_answer(base.get(sample.doc_hash)),
            few_shot=_answer(few_shot.get(sample.doc_hash)),
            tuned=_shown(sample),
        )
        for sample in scores.samples(model, task)
    ]


def request_text(messages: Sequence[dict[str, str]]) -> str:
    """One user message as it is; a conversation with its roles."""
    if len(messages) == 1:
        return messages[0].get("content", "")
    return "\n\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in messages)


def _answer(sample: Sample | None) -> Answer | None:
    return _shown(sample) if sample else None


def _shown(sample: Sample) -> Answer:
    """What the model said; of choices, the one that was scored, which need not be the likeliest before it is divided by
    its length."""
    text = sample.answer if sample.choices and sample.answer is not None else sample.response
    return Answer(text, sample.score, sample.score >= RIGHT)


def _group(kind: Literal["fixed", "broken", "still_wrong", "forgotten"], rows: list[SideBySide]) -> SampleGroup:
    """A few rows, of as many skills as possible: the first of each skill, then the second of each, …"""
    seen: dict[str | None, int] = {}
    ranked = []
    for position, row in enumerate(rows):
        seen[row.group] = seen.get(row.group, 0) + 1
        ranked.append((seen[row.group], position, row))
    shown = [row for _, _, row in sorted(ranked, key=lambda r: r[:2])[:SHOWN]]
    return SampleGroup(kind, len(rows), tuple(shown))
