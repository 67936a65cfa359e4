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
    TaskComparison,
)
from distributed_ft.evaluation.report.html import KIND_LABEL, SAMPLE_TITLE
from distributed_ft.evaluation.verdict import (
    Verdict,
    bare_points,
    fixed_percent,
    inside_budget,
    interval,
    is_catastrophic,
    points,
    points_interval,
)

MARK = {True: "yes", False: "no", None: "open"}
LONGEST = 1200  # characters of a sample text; report.html has all of it
UNKNOWN = "\N{EN DASH}"


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
    header = ("Task", "Model", "Score", "95% interval", "Tuned minus this", "95%, paired", "Items")
    return "## Base, few-shot prompt, tuned\n\n" + table(header, rows, left=2)


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
            str(estimate.n),
        )
        for name, estimate, gain in three
        if estimate is not None
    ]


def _by_checkpoint(evidence: Evidence) -> str:
    if not evidence.checkpoints:
        return ""
    header = ("Step", "Task score", "95% interval", "Against base", "Mean drop", "95% interval", "Val. loss", "Note")
    rows = [_checkpoint_row(row, evidence) for row in evidence.checkpoints]
    why = f"\n\nSelection: {_inline(evidence.selection_reason)}." if evidence.selection_reason else ""
    return f"## By checkpoint\n\n{table(header, rows)}{why}"


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
        UNKNOWN if row.validation_loss is None else f"{row.validation_loss:.3f}",
        ", ".join(note for note in notes if note),
    )


def _skills(evidence: Evidence) -> str:
    if not evidence.skills:
        return ""
    rows = [
        (s.name, str(s.n), fixed_percent(s.before), fixed_percent(s.after), points(-s.drop)) for s in evidence.skills
    ]
    return "## General skills, before and after\n\n" + table(("Skill", "Items", "Before", "After", "Change"), rows)


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
