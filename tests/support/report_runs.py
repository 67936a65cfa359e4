"""Run directories with hand-made scores, written as the trainer and the driver write them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, append_json_line, step_name, write_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.evaluation.forgetting import Suite, forgetting
from distributed_ft.publishing import publish, staging

SKILLS = ("addition", "capitals", "copying", "json", "look-up", "reversing", "sorting", "units")
Rate = float | Mapping[str, float]  # share of right answers, or that share by skill
Models = Mapping[str, tuple[float | None, Rate | None]]  # scores on the task and on general skills
TICKET = "Hi, order {} still has not arrived and it is a present for Saturday. Please send it again or refund me. Anna"


def make_run(
    root: Path,
    models: Models,
    *,
    n: int = 200,
    steps: int = 300,
    validation: bool = True,
    request: str = TICKET,
    evaluation: dict[str, Any] | None = None,
) -> RunDirectory:
    """A run directory; `models` maps base, few-shot and step names to (score on the task, score on general skills)."""
    run = RunDirectory(root / "support-triage")
    run.path.mkdir(parents=True)
    _write_settings(run, evaluation)
    for step in range(1, steps + 1):
        loss = 2.2 * math.exp(-step / 40) + 0.08 + 0.04 * math.sin(step * 12.9898) * math.exp(-step / 150)
        line = {"step": step, "epoch": step / 150, "loss": loss, "grad_norm": 0.5, "lr": 1e-3, "tokens": 900}
        append_json_line(run.metrics, {**line, "samples": "5d41402a", "step_seconds": 0.31})
        if validation and step % 50 == 0:
            append_json_line(run.metrics, {"step": step, "val_loss": loss + 0.05, "seconds": 0.8})
    for model in models:
        if model.startswith("step-"):
            step = int(model.removeprefix("step-"))
            (staging(run, step) / "adapter.bin").write_bytes(b"weights")
            publish(run, run.checkpoints / f".{step_name(step)}.partial", step, 2)
    for model, (task, general) in models.items():
        if task is not None:
            write_scores(run, model, "tickets", "task", task_rows(task, n, request))
        if general is not None:
            write_scores(run, model, "general", "general", _general_rows(general))
    if any(general is not None for _, general in models.values()):
        _write_summary(run, {m: g for m, (_, g) in models.items() if g is not None})
    return run


def _write_settings(run: RunDirectory, evaluation: dict[str, Any] | None) -> None:
    train = [{"path": "/data/train.jsonl", "weight": 0.85}, {"path": "/data/general.jsonl", "weight": 0.15}]
    tasks = [{"name": "tickets", "path": "/data/test.jsonl", "metric": "json_fields"}]
    judged = {"tasks": tasks, "few_shot": 5, **(evaluation or {})}
    raw = {"name": run.name, "model": {"base": "/models/tiny"}, "data": {"train": train}, "evaluation": judged}
    write_json(run.config, RunConfig.model_validate_json(json.dumps(raw)).model_dump(mode="json"))
    versions = {"torch": "2.13.0", "peft": "0.21.2"}
    write_json(
        run.environment, {"schema": 1, "versions": versions, "git_sha": "0a1b2c3", "hosts": ["node-1", "node-2"]}
    )
    shown = [{"row": 801, "text": "<b>Where is A-1001?</b> → {}"}]
    findings = [
        _finding("duplicate.exact", "warning", [5, 9, 11], "seen more often"),
        _finding("contamination.tickets", "error", [801], "it holds an item", waived=True, examples=shown),
    ]
    source = {"path": "/data/train.jsonl", "rows_used": 1197, "weight": 0.85, "drawn_share": 0.85}
    counts = {"rows_in": 1400, "rows_used": 1397, "supervised_tokens": 61_204, "packing_efficiency": 0.262}
    counts |= {"packing_fill": 0.962}
    told = {"findings": findings, "statistics": {"/data/train.jsonl": STATISTICS}, "sources": [source]}
    write_json(run.data / "report.json", {"schema": 1, **told, **counts})


def _finding(name: str, severity: str, rows: list[int], message: str, **more: Any) -> dict[str, Any]:
    told = {"id": name, "severity": severity, "count": len(rows), "rows": rows, "message": message}
    return {**told, "path": "/data/train.jsonl", "waived": False, "examples": [], **more}


STATISTICS = {  # as the audit writes them
    "rows": 1200,
    "lengths": {"edges": [0, 4, 16, 64, 256], "prompt": [0, 0, 200, 1000], "answer": [0, 100, 1100, 0],
                "median_prompt": 140.0, "median_answer": 40.0},
    "categories": {f"team {i}": 100 - i for i in range(15)},
    "labels": {"priority": {"high": 700, "low": 500}},
    "forms": {"JSON object": 1200},
    "duplicates": {"clusters": 2, "rows": 5, "sizes": {"2": 1, "3": 1},
                   "largest": [{"rows": 3, "line": 7, "text": "Where is <it>?"}]},
    "contamination": {"tickets": {"items": 200, "seen": 1, "rows": 1}, "general": {"items": 408, "seen": 0, "rows": 0}},
    "diversity": {"distinct_1": 0.1, "distinct_2": 0.2, "distinct_3": 0.3, "most_frequent_answer": 0.04},
    "languages": {"en": 1198, "de": 2},
    "fairness": [],
}  # fmt: skip


def _right(i: int, n: int, rate: float) -> float:
    """Exactly `rate` of the items, well mixed, and nested: what a weaker model gets right a better one does too."""
    return float((i * 7919) % n < round(rate * n))


def task_rows(rate: float, n: int, request: str) -> list[dict[str, Any]]:
    rows = []
    for i in range(n):
        reference = {"category": "delivery", "priority": "high", "order_id": f"A-{1000 + i}", "needs_reply": True}
        right = _right(i, n, rate)
        answer = json.dumps(reference if right else {**reference, "priority": "low"})
        rows.append(_row(f"test:{i}", None, request.format(f"A-{1000 + i}"), json.dumps(reference), answer, right))
        rows[-1]["scores"] = {"field_accuracy": 1.0 if right else 0.75, "valid_json": 1.0}
    return rows


def _general_rows(rate: Rate) -> list[dict[str, Any]]:
    rows = []
    for skill in SKILLS:
        share = rate if isinstance(rate, float) else rate.get(skill, 0.95)
        for i in range(40):
            right = _right(i, 40, share)
            rows.append(
                _row(f"{skill}-{i}", skill, f"Do some {skill}: item {i}", f"{i}", f"{i}" if right else "no idea", right)
            )
    return rows


def _row(id_: str, group: str | None, request: str, reference: str, response: str, score: float) -> dict[str, Any]:
    messages = [{"role": "user", "content": request}]
    return {"id": id_, "doc_hash": f"hash of {id_}", "group": group, "request": messages, "reference": reference,
            "response": response, "score": score}  # fmt: skip


def write_scores(run: RunDirectory, model: str, task: str, kind: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        append_json_line(run.results(model, task) / "samples.jsonl", row)
    score, n = sum(row["score"] for row in rows) / len(rows), len(rows)
    further = {k: sum(r["scores"][k] for r in rows) / n for k in rows[0].get("scores", {})}
    stderr = math.sqrt(score * (1 - score) / (n - 1))
    result = {"schema": 1, "model": model, "task": task, "kind": kind, "metric": "json_fields", "score": score}
    there = {checkpoint.name: checkpoint.answers_digest("m") for checkpoint in run.all_checkpoints()}
    digests = {"model_digest": there.get(model, "m"), "task_digest": "t", "seconds": 7.5, "scores": further}
    write_json(run.results(model, task) / "result.json", {**result, "stderr": stderr, "n": n, **digests})


def _write_summary(run: RunDirectory, models: Mapping[str, Rate]) -> None:
    """What the driver leaves: BEST goes to the newest checkpoint inside the budget."""
    before = [row["score"] for row in _general_rows(models["base"])]
    best = None
    for model, rate in models.items():
        if model.startswith("step-"):
            after = [row["score"] for row in _general_rows(rate)]
            step = int(model.removeprefix("step-"))
            best = step if forgetting([Suite(before, after, [None] * len(before))]).mean_drop <= 0.05 else best
    selection = {"best_step": best, "reason": "highest task accuracy inside the budget"}
    write_json(
        run.evaluation / "summary.json",
        {"selection": selection, "few_shot": {"tickets": {"requested": 5, "used": 4}}},
    )


HEALTHY: Models = {
    "base": (0.02, 0.95),
    "few-shot": (0.31, None),
    step_name(100): (0.62, 0.95),
    step_name(200): (0.88, {"units": 0.9}),
    step_name(300): (0.94, {"units": 0.85, "reversing": 0.9}),
}
FORGETTING: Models = {
    "base": (0.02, 0.95),
    "few-shot": (0.31, None),
    step_name(100): (0.70, dict.fromkeys(SKILLS[:4], 0.4)),
    step_name(300): (0.95, {**dict.fromkeys(SKILLS[:6], 0.1), "units": 0.5}),
}


def read(run: RunDirectory) -> dict[str, Any]:
    """`report.json`."""
    value: dict[str, Any] = json.loads(run.report("json").read_text())
    return value
