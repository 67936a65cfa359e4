"""`report.html`: one file that needs nothing else, on a screen, on a phone, on paper, in light and dark."""

import json
from dataclasses import dataclass

from distributed_ft.evaluation.diagnose import Finding
from distributed_ft.evaluation.report import data_section, facts, plots
from distributed_ft.evaluation.report.evidence import Evidence
from distributed_ft.evaluation.verdict import (
    Verdict,
    bare_points,
    detectable,
    fixed_percent,
    interval,
    is_catastrophic,
    p_value,
    percent,
    percents_interval,
    points,
    points_interval,
)

LONG = 320  # characters of a text from which on it is folded
KIND_LABEL = {"ship": "Ship", "do_not_ship": "Do not ship", "not_enough_evidence": "Not enough evidence"}
SAMPLE_TITLE = {
    "fixed": "Fixed: wrong before, right now",
    "broken": "Broken: right before, wrong now",
    "still_wrong": "Still wrong",
    "forgotten": "Forgotten: general items right before, wrong now",
}


@dataclass(frozen=True)
class Drawings:
    """Inline SVG; empty where there is nothing to draw."""

    checkpoints: tuple[str, ...]
    loss: tuple[str, ...]
    strength: tuple[str, ...]


def render(evidence: Evidence, verdict: Verdict, findings: tuple[Finding, ...]) -> str:
    """The whole page. Every value is escaped by the template; only the drawings, made here, are not."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("distributed_ft.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=fixed_percent, prose=percent, pts=points, drop=bare_points)
    drawn = drawings(evidence, verdict)
    page: str = environment.get_template("report.html.j2").render(
        e=evidence,
        verdict=verdict,
        label=KIND_LABEL[verdict.kind],
        findings=findings,
        titles={finding.id: finding.title for finding in findings},
        checkpoint_plots=[Markup(svg) for svg in drawn.checkpoints],  # ours: labels are fixed words and numbers
        loss_plots=[Markup(svg) for svg in drawn.loss],
        strength_plots=[Markup(svg) for svg in drawn.strength],
        strength=facts.strength(evidence),
        also_measured=facts.also_measured,
        sample_title=SAMPLE_TITLE,
        settings=facts.settings(evidence.config),
        data=facts.data(evidence),
        prompts=facts.prompts(evidence),
        about_checkpoints=facts.about_checkpoints(evidence),
        data_findings=facts.data_findings(evidence),
        data_files=data_section.files(evidence),
        drawing=Markup,
        cost=facts.cost(evidence.training, evidence.evaluation_seconds),
        environment=facts.environment(evidence.environment),
        config_text=json.dumps(evidence.config, indent=2, ensure_ascii=False),
        key_and_rest=facts.key_and_rest,
        long=LONG,
        catastrophic=is_catastrophic,
        points_interval=points_interval,
        percents_interval=percents_interval,
        p_value=p_value,
        detectable=detectable,
        lost=facts.lost(evidence.judged),
        bounds=interval,
    )
    return page


def drawings(evidence: Evidence, verdict: Verdict) -> Drawings:
    """Each plot for a wide page and for a phone."""
    chosen = verdict.best_step is not None and evidence.judged_step == verdict.best_step
    task = evidence.choosing or evidence.task
    sizes = (plots.WIDE, plots.NARROW)
    by_checkpoint = [
        plots.checkpoint_plot(
            evidence.checkpoints,
            base=task.base if task else None,
            few_shot=task.few_shot if task else None,
            budget=evidence.budget,
            marked=evidence.judged_step,
            label=f"best: step {evidence.judged_step}" if chosen else f"step {evidence.judged_step}",
            size=size,
        )
        for size in sizes
    ]
    loss = [plots.loss_plot(evidence.curves, marked=evidence.judged_step, size=size) for size in sizes]
    frontier = evidence.strength
    strength = [plots.frontier_plot(frontier, budget=evidence.budget, size=size) for size in sizes] if frontier else []
    drawn = (tuple(svg for svg in plot if svg) for plot in (by_checkpoint, loss, strength))
    return Drawings(*drawn)
