"""The answer to "which checkpoint do I ship": `report.json` for programs, `report.md` for terminals, `report.html`.

Reads what lies in the run directory, and the training file that its settings name, where that is still there.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, write_atomic, write_json
from distributed_ft.evaluation.diagnose import Finding, diagnose
from distributed_ft.evaluation.report import html, markdown
from distributed_ft.evaluation.report.collect import collect
from distributed_ft.evaluation.report.evidence import CheckpointScores, Difference, Estimate, Evidence, TaskComparison
from distributed_ft.evaluation.verdict import Reason, Verdict, decide, is_catastrophic
from distributed_ft.records import SCHEMA


@dataclass(frozen=True)
class Report:
    """What was found, what follows from it, and where it was written."""

    evidence: Evidence
    verdict: Verdict
    findings: tuple[Finding, ...]
    html: Path
    markdown: Path
    json: Path


def write(run_dir: Path) -> Report:
    """Write `report.json`, `report.md` and `report.html` into `run_dir`, each in one step.

    Raises CheckpointError when there is no such directory or a file in it is damaged. What is merely not there yet
    (no evaluation, no checkpoint, …) is said in the report, with the command that makes it.
    """
    evidence = collect(run_dir)
    task = evidence.task
    verdict = decide(
        evidence.checkpoints,
        evidence.best_step,
        base=task.base if task else None,
        few_shot=task.few_shot if task else None,
        budget=evidence.budget,
        examples=evidence.few_shot_examples,
        no_prompt=evidence.no_prompt,
        task=task.name if task else "the task",
        judged=evidence.judged,
        chosen=_how_chosen(evidence),
    )
    findings = diagnose(evidence)
    run = RunDirectory(run_dir)
    report = Report(evidence, verdict, findings, run.report("html"), run.report("md"), run.report("json"))
    write_json(report.json, as_json(report))
    write_atomic(report.markdown, markdown.render(evidence, verdict, findings))
    write_atomic(report.html, html.render(evidence, verdict, findings))
    return report


def _how_chosen(evidence: Evidence) -> Reason | None:
    """A step of the argument where the judged checkpoint is the chosen one: it holds where that was done on other
    rows."""
    told = evidence.how_chosen
    if told is None or evidence.judged_step != evidence.best_step:
        return None
    return Reason(None if evidence.optimistic else True, f"{told[0].upper()}{told[1:]}.")


def as_json(report: Report) -> dict[str, Any]:
    """`report.json`: the keys of the contract, null where not known, and what a program may want besides."""
    evidence, verdict = report.evidence, report.verdict
    judged = evidence.judged
    forgetting = judged.forgetting if judged else None
    return {
        "schema": SCHEMA,
        "run": evidence.name,
        "verdict": verdict.kind,
        "headline": verdict.headline,
        "reasons": [asdict(reason) for reason in verdict.reasons],
        "best_step": verdict.best_step,
        "judged_step": evidence.judged_step,
        "choosing": _comparison(evidence.choosing) if evidence.choosing else None,
        "how_chosen": evidence.how_chosen,
        "prompts": [asdict(prompt) for prompt in evidence.prompts],
        "task": _comparison(evidence.task),
        "tasks": {task.name: _comparison(task) for task in evidence.tasks},
        "general": _comparison(evidence.general),
        "forgetting": {
            **dict.fromkeys(("rate", "low", "high", "mean_drop")),
            **(asdict(forgetting) if forgetting else {}),
            "kl_to_base": asdict(judged.drift) if judged and judged.drift else None,
            "budget": evidence.budget,
            "catastrophic": is_catastrophic(forgetting, evidence.budget) if forgetting else None,
        },
        "skills": [asdict(skill) for skill in evidence.skills],
        "strength": asdict(evidence.strength) if evidence.strength else None,
        "checkpoints": [_checkpoint(row, evidence) for row in evidence.checkpoints],
        "diagnosis": [asdict(finding) for finding in report.findings],
        "missing": [asdict(missing) for missing in evidence.missing],
        "training": {**asdict(evidence.training), "tokens_per_second": evidence.training.tokens_per_second},
    }


def _comparison(comparison: TaskComparison | None) -> dict[str, Any]:
    three = {
        "base": _estimate(comparison.base if comparison else None),
        "few_shot": _estimate(comparison.few_shot if comparison else None),
        "tuned": _estimate(comparison.tuned if comparison else None),
    }
    if comparison is None:
        return three
    return {
        "name": comparison.name,
        "metric": comparison.metric,
        **three,
        "versus_base": _difference(comparison.versus_base),
        "versus_few_shot": _difference(comparison.versus_few_shot),
        "further": _by_model(comparison.further),
        "totals": _by_model(comparison.totals),
        "empty": _three(comparison.empty),
        "confusion": asdict(comparison.confusion) if comparison.confusion else None,
    }


def _by_model(figures: dict[str, tuple[float | None, ...]]) -> dict[str, dict[str, float | None]]:
    return {name: _three(three) for name, three in figures.items()}


def _three(values: tuple[float | None, ...]) -> dict[str, float | None]:
    return dict(zip(("base", "few_shot", "tuned"), values, strict=False))


def _checkpoint(row: CheckpointScores, evidence: Evidence) -> dict[str, Any]:
    return {
        "step": row.step,
        "best": row.step == evidence.best_step,
        "files": row.files,
        "task": _estimate(row.task),
        "versus_base": _difference(row.versus_base),
        "versus_few_shot": _difference(row.versus_few_shot),
        "general": _estimate(row.general),
        "forgetting": asdict(row.forgetting) if row.forgetting else None,
        "val_loss": row.validation_loss,
        "kl_to_base": asdict(row.drift) if row.drift else None,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    return asdict(difference) if difference else None
