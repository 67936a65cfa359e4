"""The report, from run directories written as the trainer and the driver write them."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory, append_json_line, publish, staging, step_name, write_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation.forgetting import forgetting
from distributed_ft.evaluation.report import write as report

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
            _write_scores(run, model, "tickets", "task", _task_rows(task, n, request))
        if general is not None:
            _write_scores(run, model, "general", "general", _general_rows(general))
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
    finding = {
        "id": "duplicate_rows",
        "severity": "info",
        "count": 3,
        "rows": ["train:5"],
        "message": "seen more often",
    }
    source = {"path": "/data/train.jsonl", "rows_used": 1197, "weight": 0.85, "drawn_share": 0.85}
    counts = {"rows_in": 1400, "rows_used": 1397, "supervised_tokens": 61_204, "packing_efficiency": 0.962}
    write_json(run.data / "report.json", {"schema": 1, "findings": [finding], "sources": [source], **counts})


def _right(i: int, n: int, rate: float) -> float:
    """Exactly `rate` of the items, well mixed, and nested: what a weaker model gets right a better one does too."""
    return float((i * 7919) % n < round(rate * n))


def _task_rows(rate: float, n: int, request: str) -> list[dict[str, Any]]:
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


def _write_scores(run: RunDirectory, model: str, task: str, kind: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        append_json_line(run.results(model, task) / "samples.jsonl", row)
    score, n = sum(row["score"] for row in rows) / len(rows), len(rows)
    further = {k: sum(r["scores"][k] for r in rows) / n for k in rows[0].get("scores", {})}
    stderr = math.sqrt(score * (1 - score) / (n - 1))
    result = {"schema": 1, "model": model, "task": task, "kind": kind, "metric": "json_fields", "score": score}
    digests = {"model_digest": "m", "task_digest": "t", "seconds": 7.5, "scores": further}
    write_json(run.results(model, task) / "result.json", {**result, "stderr": stderr, "n": n, **digests})


def _write_summary(run: RunDirectory, models: Mapping[str, Rate]) -> None:
    """What the driver leaves: forgetting by step; BEST goes to the newest checkpoint inside the budget."""
    before = [row["score"] for row in _general_rows(models["base"])]
    lost: dict[str, Any] = {}
    best = None
    for model, rate in models.items():
        if model.startswith("step-"):
            rows = _general_rows(rate)
            after = [row["score"] for row in rows]
            step = int(model.removeprefix("step-"))
            lost[str(step)] = asdict(forgetting(before, after, [row["group"] for row in rows]))
            best = step if lost[str(step)]["mean_drop"] <= 0.05 else best
    selection = {"best_step": best, "reason": "highest task accuracy inside the budget"}
    write_json(
        run.evaluation / "summary.json",
        {"selection": selection, "forgetting": lost, "few_shot": {"tickets": {"requested": 5, "used": 4}}},
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


class Page(HTMLParser):
    """What a browser would do with the file: elements, and everything that it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href") and not (
                value or ""
            ).startswith("#"):
                self.fetched.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def read(run: RunDirectory) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run.report("json").read_text())
    return value


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("healthy"), HEALTHY)
    report.write(run.path)
    return run


def test_a_healthy_run_is_shipped_with_the_numbers_of_its_best_checkpoint(healthy: RunDirectory) -> None:
    found = read(healthy)
    assert found["schema"] == 1
    assert found["verdict"] == "ship"
    assert found["best_step"] == 300
    three = [found["task"][who]["score"] for who in ("base", "few_shot", "tuned")]
    assert three == pytest.approx([0.02, 0.31, 0.94])
    assert {"score", "stderr", "n"} <= found["task"]["tuned"].keys()
    assert found["forgetting"]["mean_drop"] == pytest.approx((0.1 + 0.05) / 8)
    assert {"rate", "low", "high", "mean_drop"} <= found["forgetting"].keys()
    assert [row["step"] for row in found["checkpoints"]] == [100, 200, 300]
    assert found["missing"] == found["diagnosis"] == []
    assert "Ship step 300" in healthy.report("md").read_text().splitlines()[0]


def test_the_paired_difference_is_that_of_the_items_both_answered(healthy: RunDirectory) -> None:
    gain = read(healthy)["task"]["versus_few_shot"]
    assert gain["mean"] == pytest.approx(0.94 - 0.31)
    assert gain["n"] == 200
    # nested right answers: 126 of 200 items differ, all one way; binomial standard error of that share
    assert gain["low"] == pytest.approx(0.63 - 1.96 * math.sqrt(0.63 * 0.37 / 200), abs=0.01)


def test_lost_general_skills_are_called_catastrophic_forgetting_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, FORGETTING)
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "do_not_ship"
    assert found["best_step"] is None
    assert found["judged_step"] == 300
    assert "catastrophic forgetting" in found["headline"].lower()
    assert found["forgetting"]["catastrophic"] is True
    assert found["diagnosis"][0]["id"] == "catastrophic_forgetting"
    assert "addition (95% → 10%)" in found["diagnosis"][0]["evidence"]
    assert "data.train" in found["diagnosis"][0]["remedies"][0]
    for suffix in ("md", "html"):
        text = run.path.joinpath(f"report.{suffix}").read_text()
        assert "Catastrophic forgetting: step 300 scores 95% on tickets" in text
        assert "Forgotten: general items right before, wrong now" in text


def test_a_run_that_a_prompt_equals_is_not_shipped(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.1, 0.95), "few-shot": (0.9, None), step_name(300): (0.9, 0.95)})
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "do_not_ship"
    assert "few-shot prompt would have done as well" in found["headline"]
    assert [finding["id"] for finding in found["diagnosis"]] == ["few_shot_is_enough"]


def test_without_an_evaluation_the_report_shows_the_curve_and_names_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path, {step_name(100): (None, None), step_name(300): (None, None)})
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "not_enough_evidence"
    assert found["best_step"] is None
    assert found["task"] == {"base": None, "few_shot": None, "tuned": None}
    assert found["forgetting"]["rate"] is None
    assert f"dft eval {run.path}" in {missing["remedy"] for missing in found["missing"]}
    assert 'class="plot wide"' in run.report("html").read_text()


@pytest.mark.parametrize(
    ("models", "what"),
    [
        ({step_name(100): (0.9, 0.95)}, "The base model's scores"),
        ({"base": (0.1, 0.95), "few-shot": (0.2, None)}, "Checkpoints"),
        ({"base": (0.1, None), "few-shot": (0.2, None), step_name(300): (0.9, None)}, "Scores on the general suite"),
        ({"base": (0.1, 0.95), step_name(300): (0.9, 0.95)}, "The few-shot prompt's scores"),
        ({**HEALTHY, step_name(250): (None, None)}, "Scores of step 250"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_invented(tmp_path: Path, models: Models, what: str) -> None:
    if "base" not in models:
        models = {name: (task, None) for name, (task, _) in models.items()}
    run = make_run(tmp_path, models)
    report.write(run.path)
    assert what in {missing["what"] for missing in read(run)["missing"]}
    assert what in run.report("md").read_text()
    assert what.replace("'", "&#39;") in run.report("html").read_text()


def test_an_evaluation_killed_before_its_end_selects_nothing_but_shows_its_scores(
    tmp_path: Path, healthy: RunDirectory
) -> None:
    run = make_run(tmp_path, HEALTHY)
    (run.evaluation / "summary.json").unlink()
    report.write(run.path)
    found = read(run)
    assert (found["verdict"], found["best_step"]) == ("not_enough_evidence", None)
    assert "did not finish" in found["headline"]
    assert found["checkpoints"][2]["forgetting"] == read(healthy)["checkpoints"][2]["forgetting"]
    assert "The selected checkpoint (evaluation/summary.json)" in {missing["what"] for missing in found["missing"]}


def test_an_empty_run_directory_gets_a_report_of_what_is_to_be_done(tmp_path: Path) -> None:
    report.write(tmp_path)
    found = read(RunDirectory(tmp_path))
    assert found["verdict"] == "not_enough_evidence"
    assert {m["remedy"] for m in found["missing"]} == {f"dft train {tmp_path}", f"dft eval {tmp_path}"}


def test_a_run_without_validation_or_general_suite_says_which_key_adds_it(tmp_path: Path) -> None:
    models = {"base": (0.1, None), step_name(300): (0.9, None)}
    run = make_run(tmp_path, models, validation=False, evaluation={"general": [], "few_shot": 0})
    report.write(run.path)
    remedies = " ".join(missing["remedy"] for missing in read(run)["missing"])
    assert "data.validation" in remedies
    assert "evaluation.general: [shipped]" in remedies
    assert "evaluation.few_shot: 4" in remedies
    assert read(run)["verdict"] == "not_enough_evidence"
    assert "what it forgot was not measured" in read(run)["headline"]


def test_one_checkpoint_is_enough_for_every_part_of_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.02, 0.95), "few-shot": (0.31, None), step_name(7): (0.94, 0.95)}, steps=7)
    report.write(run.path)
    assert read(run)["verdict"] == "ship"
    page = Page(run.report("html").read_text())
    assert page.tags.count("svg") == 4  # two plots, each for a wide page and for a phone


def test_a_checkpoint_removed_after_its_evaluation_stays_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    kept = run.checkpoints / step_name(300)
    for checkpoint in run.all_checkpoints():
        if checkpoint.path != kept:
            (checkpoint.path / "manifest.json").unlink()
            (checkpoint.path / "adapter.bin").unlink()
            checkpoint.path.rmdir()
    (kept / "adapter.bin").write_bytes(b"cut")
    report.write(run.path)
    assert [row["files"] for row in read(run)["checkpoints"]] == ["removed", "removed", "damaged"]


def test_text_of_a_model_or_a_row_never_becomes_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)> {} \"' ``` | </style></title>{{{{ 7*7 }}}} & <b>"
    run = make_run(tmp_path, HEALTHY, n=30, request=attack)
    write_json(run.environment, {"host": attack})
    samples = run.results(step_name(300), "tickets") / "samples.jsonl"
    lines = [{**json.loads(line), "response": attack * 40} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write(run.path)
    text = run.report("html").read_text()
    page = Page(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not {"script", "img"} & set(page.tags)
    assert page.handlers == []
    assert "7*7" in text
    markdown = run.report("md").read_text()
    outside_fences = re.sub(r"^(`{3,})\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_fences


def test_the_page_fetches_nothing(healthy: RunDirectory) -> None:
    text = healthy.report("html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert not {"link", "script", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert len(text) < 400_000


def test_markdown_shows_the_three_ways_as_an_aligned_table(healthy: RunDirectory) -> None:
    lines = healthy.report("md").read_text().splitlines()
    start = lines.index("## Base, few-shot prompt, tuned") + 2
    rows = lines[start : start + 5]
    assert len({len(row) for row in rows}) == 1
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[2][:3] == ["tickets", "base", "2.0%"]
    assert cells[3][1:3] == ["base + 4 examples", "31.0%"]
    assert cells[4][1:3] == ["tuned, step 300", "94.0%"]


def test_the_same_run_gives_the_same_bytes(healthy: RunDirectory) -> None:
    first = [healthy.path.joinpath(f"report.{suffix}").read_bytes() for suffix in ("json", "md", "html")]
    report.write(healthy.path)
    assert first == [healthy.path.joinpath(f"report.{suffix}").read_bytes() for suffix in ("json", "md", "html")]


def test_several_tasks_are_shown_and_judged_by_their_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    for model, rate in (("base", 0.1), ("few-shot", 0.2), (step_name(300), 0.5)):
        _write_scores(run, model, "intents", "task", _task_rows(rate, 100, TICKET))
    report.write(run.path)
    found = read(run)
    assert found["tasks"].keys() == {"tickets", "intents"}
    assert found["task"]["tuned"]["score"] == pytest.approx((0.94 + 0.5) / 2)
    assert found["task"]["versus_base"]["mean"] == pytest.approx((0.92 + 0.4) / 2)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run directory"):
        report.write(tmp_path / "nowhere")
    run = make_run(tmp_path, HEALTHY)
    (run.results("base", "tickets") / "result.json").write_text('{"schema": 1}')
    with pytest.raises(CheckpointError, match=r"result\.json"):
        report.write(run.path)
    assert not run.report("html").exists()
