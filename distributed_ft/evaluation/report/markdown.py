"""`report.md`: the same answer where there is no browser. Columns are aligned, so that it reads well as plain text."""

import re
from collections.abc import Sequence

from distributed_ft.evaluation.diagnose import Finding
from distributed_ft.evaluation.report import facts
from distributed_ft.evaluation.report.evidence import (
    Answer,
    CheckpointScores,
    Difference,
    Estimate,
    Evidence,
    Skill,
    TaskComparison,
)
from distributed_ft.evaluation.report.facts import UNKNOWN
from distributed_ft.evaluation.report.html import KIND_LABEL, SAMPLE_TITLE
from distributed_ft.evaluation.verdict import (
    Verdict,
    bare_points,
    detectable,
    fixed_percent,
    inside_budget,
    interval,
    is_catastrophic,
    p_value,
    percents_interval,
    points,
    points_interval,
)

MARK = {True: "yes", False: "no", None: "open"}
LONGEST = 1200  # characters of a sample text; report.html has all of it


def render(evidence: Evidence, verdict: Verdict, findings: Sequence[Finding]) -> str:
    """The whole file."""
    ship = f" step {verdict.best_step}" if verdict.kind == "ship" else ""
    parts = [
        f"# {KIND_LABEL[verdict.kind]}{ship}: {_inline(evidence.name)}",
        _inline(verdict.headline),
        "\n".join(f"- **{MARK[reason.holds]}**: {_inline(reason.text)}" for reason in verdict.reasons),
        _missing(evidence),
        _diagnosis(findings),
        _three_ways(evidence),
        _by_checkpoint(evidence),
        _strength(evidence),
        _skills(evidence),
        _facts(evidence),
        _samples(evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A pipe table; every column but the first `left` is aligned right."""
    cells = [[_inline(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = [":" + "-" * (w - 1) if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in cells
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (padded[0], rule, *padded[1:]))


def _missing(evidence: Evidence) -> str:
    lines = [f"- {_inline(missing.what)}: `{missing.remedy.replace('`', '')}`" for missing in evidence.missing]
    return "## Not known yet\n\n" + "\n".join(lines) if lines else ""


def _diagnosis(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    blocks = []
    titles = {finding.id: finding.title for finding in findings}
    for finding in findings:
        sure = f"confidence {finding.confidence:.0%}"
        after = f"; may follow from: {', '.join(titles[id] for id in finding.because_of)}" if finding.because_of else ""
        remedies = "\n".join(f"{i}. {_remedy(remedy)}" for i, remedy in enumerate(finding.remedies, 1))
        blocks.append(
            f"### {finding.title} ({finding.severity}, {sure}{_inline(after)})\n\n"
            f"{_inline(finding.evidence)} What to change:\n\n{remedies}"
        )
    return "## Diagnosis\n\n" + "\n\n".join(blocks)


def _remedy(remedy: str) -> str:
    key, rest = facts.key_and_rest(remedy)
    return f"`{key}`:{_inline(rest)}" if key else _inline(remedy)


def _three_ways(evidence: Evidence) -> str:
    comparisons = [*evidence.tasks]
    if len(evidence.tasks) > 1 and evidence.task:
        comparisons.append(evidence.task)
    if evidence.general:
        comparisons.append(evidence.general)
    rows = [row for comparison in comparisons for row in _comparison_rows(comparison, evidence)]
    if not rows:
        return ""
    header = ("Task", "Model", "Score", "95% interval", "Tuned minus this", "95%, paired", "p", "Items")
    told = "".join(f"\n\nExamples of {_inline(line)}." for line in facts.prompts(evidence))
    parts = [table(header, rows, left=2) + told + _undecided(comparisons), _also_measured(comparisons)]
    parts += [_confusion(comparison) for comparison in comparisons]
    return "## Base, few-shot prompt, tuned\n\n" + "\n\n".join(part for part in parts if part)


def _also_measured(comparisons: Sequence[TaskComparison]) -> str:
    rows = [(c.name, name, *three) for c in comparisons for name, three in facts.also_measured(c)]
    return table(("Task", "Also measured", "Base", "+ examples", "Tuned"), rows, left=2) if rows else ""


def _confusion(comparison: TaskComparison) -> str:
    found = comparison.confusion
    if found is None:
        return ""
    f1 = [UNKNOWN if value is None else fixed_percent(value) for value in found.f1]
    rows = [
        (right, *map(str, counts), of_label)
        for right, counts, of_label in zip(found.right, found.counts, f1, strict=True)
    ]
    title = f"{_inline(comparison.name)}, confusion of the tuned model (rows: the right label; columns: the answer)"
    return f"{title}:\n\n{table(('Right', *found.named, 'F1'), rows)}"


def _undecided(comparisons: Sequence[TaskComparison]) -> str:
    """Beside every difference that was not shown: how large one would have been."""
    lines = [
        f"- {_inline(comparison.name)}, against {name}: no difference shown; {detectable(gain)}."
        for comparison in comparisons
        for name, gain in (("base", comparison.versus_base), ("base + examples", comparison.versus_few_shot))
        if gain is not None and not gain.shown
    ]
    return "\n\n" + "\n".join(lines) if lines else ""


def _comparison_rows(comparison: TaskComparison, evidence: Evidence) -> list[tuple[str, ...]]:
    tuned = "tuned" + ("" if evidence.judged_step is None else f", step {evidence.judged_step}")
    three: list[tuple[str, Estimate | None, Difference | None]] = [
        ("base", comparison.base, comparison.versus_base),
        (
            f"base + {evidence.few_shot_examples or ''} examples".replace("  ", " "),
            comparison.few_shot,
            comparison.versus_few_shot,
        ),
        (tuned, comparison.tuned, None),
    ]
    return [
        (
            comparison.name,
            name,
            fixed_percent(estimate.score),
            interval(estimate),
            points(gain.mean) if gain else "",
            points_interval(gain.low, gain.high) if gain else "",
            _p(gain) if gain else "",
            str(estimate.n),
        )
        for name, estimate, gain in three
        if estimate is not None
    ]


def _p(gain: Difference) -> str:
    """Of one task among several, adjusted for them."""
    p = gain.p if gain.p_holm is None else gain.p_holm
    return UNKNOWN if p is None else p_value(p)


def _by_checkpoint(evidence: Evidence) -> str:
    if not evidence.checkpoints:
        return ""
    header = (
        "Step",
        "Task score",
        "95% interval",
        "Against base",
        "Mean drop",
        "95% interval",
        "KL to base",
        "Val. loss",
        "Note",
    )
    rows = [_checkpoint_row(row, evidence) for row in evidence.checkpoints]
    why = f"\n\nSelection: {_inline(evidence.selection_reason)}." if evidence.selection_reason else ""
    told = "".join(f"\n\n{_inline(line)}." for line in facts.about_checkpoints(evidence))
    return f"## By checkpoint\n\n{table(header, rows)}{told}{why}"


def _checkpoint_row(row: CheckpointScores, evidence: Evidence) -> tuple[str, ...]:
    task, lost, gain = row.task, row.forgetting, row.versus_base
    notes = ["best" if row.step == evidence.best_step else ""]
    if is_catastrophic(lost, evidence.budget):
        notes.append("catastrophic forgetting")
    elif not inside_budget(row, evidence.budget):
        notes.append("over budget")
    notes.append("" if row.files == "complete" else f"files {row.files}")
    notes.append("" if task else "not evaluated")
    return (
        str(row.step),
        fixed_percent(task.score) if task else UNKNOWN,
        interval(task) if task else UNKNOWN,
        points(gain.mean) if gain else UNKNOWN,
        bare_points(lost.mean_drop) if lost else UNKNOWN,
        f"[{bare_points(lost.drop_low)}, {bare_points(lost.drop_high)}]" if lost else UNKNOWN,
        UNKNOWN if row.drift is None else f"{row.drift.kl:.3f}",
        UNKNOWN if row.validation_loss is None else f"{row.validation_loss:.3f}",
        ", ".join(note for note in notes if note),
    )


def _strength(evidence: Evidence) -> str:
    found = facts.strength(evidence)
    if found is None:
        return ""
    rows = [
        (
            row.strength,
            row.score,
            row.score_interval,
            row.drop or UNKNOWN,
            row.drop_interval,
            "recommended" if row.recommended else "over budget" if row.over else "",
        )
        for row in found.rows
    ]
    header = ("Strength", "Task score", "95% interval", "Mean drop", "95% interval", "Note")
    return f"## Strength of the adapter\n\n{_inline(found.told)}\n\n{table(header, rows)}"


def _skills(evidence: Evidence) -> str:
    if not evidence.skills:
        return ""
    rows = [_skill_row(skill) for skill in evidence.skills]
    header = (
        "Skill",
        "Items",
        "Before",
        "After",
        "Change",
        "95% interval",
        "p",
        "Forgotten",
        "95% interval",
        "At most",
    )
    listed = "\n".join(f"- {label}: {value}" for label, value in facts.lost(evidence.judged))
    told = f"p: of no change, adjusted for all {len(rows)} skills (Holm); intervals are of each skill by itself."
    parts = [listed, table(header, rows), told]
    return "## General skills, before and after\n\n" + "\n\n".join(part for part in parts if part)


def _skill_row(skill: Skill) -> tuple[str, ...]:
    return (
        skill.name,
        str(skill.n),
        fixed_percent(skill.before),
        fixed_percent(skill.after),
        points(-skill.drop),
        points_interval(-skill.drop_high, -skill.drop_low),
        p_value(skill.p_holm),
        fixed_percent(skill.rate),
        percents_interval(skill.low, skill.high),
        fixed_percent(skill.ceiling),
    )


def _facts(evidence: Evidence) -> str:
    blocks = []
    for title, rows in (
        ("Settings", facts.settings(evidence.config)),
        ("Data", facts.data(evidence)),
        ("Cost", facts.cost(evidence.training, evidence.evaluation_seconds)),
        ("Environment", facts.environment(evidence.environment)),
    ):
        if rows:
            blocks.append(f"**{title}**\n\n" + "\n".join(f"- {label}: {_inline(value)}" for label, value in rows))
    found = [
        f"- {f['severity']}{', waived' if f['waived'] else ''}: {f['id']} ({f['count']}): {f['message']}"
        for f in facts.data_findings(evidence)
    ]
    if found:
        blocks.append("**Findings in the data**\n\n" + "\n".join(_inline(line) for line in found))
    return "## What was trained\n\n" + "\n\n".join(blocks) if blocks else ""


def _samples(evidence: Evidence) -> str:
    """One item of each kind: enough to see what is meant."""
    blocks = []
    for group in evidence.samples:
        sample = group.shown[0]
        texts = [("Request", sample.request), ("Reference", sample.reference)]
        answers: list[tuple[str, Answer | None]] = [
            ("Base", sample.base),
            ("Base + examples", sample.few_shot),
            ("Tuned", sample.tuned),
        ]
        texts += [(f"{name} ({'right' if a.right else 'wrong'})", a.text) for name, a in answers if a is not None]
        body = "\n\n".join(f"{name}:\n\n{_fenced(text)}" for name, text in texts)
        blocks.append(f"### {SAMPLE_TITLE[group.kind]} ({group.total} in all)\n\nItem {_inline(sample.id)}\n\n{body}")
    return "## Sample answers\n\n" + "\n\n".join(blocks) if blocks else ""


def _inline(text: str) -> str:
    """Text that stays text: no line break, no column, no tag."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    shown = text if len(text) <= LONGEST else text[:LONGEST] + f"\n… ({len(text)} characters, all in report.html)"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    return f"{fence}\n{shown or '(empty)'}\n{fence}"
