"""Figures that are no means over items, and which label was taken for which, in all three reports."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.report_runs import HEALTHY, make_run, read
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distributed_ft.artifacts import RunDirectory, read_json, step_name, write_json
from distributed_ft.evaluation.confusion import confusion, image
from distributed_ft.evaluation.report import write as report
from distributed_ft.evaluation.scalars import log, log_strength
from distributed_ft.evaluation.scoring import Model, Scored
from distributed_ft.evaluation.strength import Frontier, Point
from distributed_ft.evaluation.summary import Scores, summarise
from distributed_ft.records import Sample, TaskResult

RIGHT = ["a", "a", "a", "b", "b", "c"]
NAMED = ["a", "b", "(none)", "b", "b", "a"]


def samples(right: Sequence[str], named: Sequence[str]) -> list[Sample]:
    pairs = enumerate(zip(right, named, strict=True))
    return [
        Sample(id=str(i), doc_hash=str(i), request=[], reference=r, response=n, answer=n, score=float(r == n))
        for i, (r, n) in pairs
    ]


def result(n: int, metric: str = "classification") -> TaskResult:
    digests = {"model_digest": "m", "task_digest": "t"}
    return TaskResult(
        schema=1, model="base", task="moods", kind="task", metric=metric, score=0.5, stderr=0.2, n=n, **digests
    )


def test_a_confusion_matrix_counts_which_label_was_taken_for_which() -> None:
    found = confusion(result(6), samples(RIGHT, NAMED))
    assert found is not None
    assert (found.right, found.named) == (("a", "b", "c"), ("a", "b", "c", "(none)"))
    assert found.counts == ((1, 1, 0, 1), (0, 2, 0, 0), (1, 0, 0, 0))
    assert found.f1 == (pytest.approx(2 / 5), pytest.approx(4 / 5), 0.0)  # 2 tp / (named + right)
    assert confusion(result(6, "exact_match"), samples(RIGHT, NAMED)) is None


def test_of_many_labels_the_rarest_are_taken_together() -> None:
    right = [f"label {i}" for i in range(30) for _ in range(30 - i)]
    found = confusion(result(len(right)), samples(right, right), most=5)
    assert found is not None
    assert found.right == found.named == ("label 0", "label 1", "label 2", "label 3", "(other)")
    assert found.counts[0] == (30, 0, 0, 0, 0)
    assert sum(map(sum, found.counts)) == len(right)
    assert found.f1 == (1.0, 1.0, 1.0, 1.0, None)


def test_a_confusion_matrix_is_drawn_with_names_that_are_no_formulas() -> None:
    found = confusion(result(2), samples(["$x^{$", "b"], ["b", "$x^{$"]))
    assert found is not None
    drawn = image(found, "moods $\\frac{")
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3
    assert drawn.shape[-1] == 3
    assert drawn.min() < 100 < 250 < drawn.max()


def of_labels(run: RunDirectory, model: str, **more: Any) -> None:
    """Make a stored score of tickets one of a classification."""
    place = run.results(model, "tickets")
    totals = {"macro_f1": 0.4, "majority": 0.5, "corpus_bleu": 31.25, "f1[<b>]": 0.4, "confusion[<b> -> x]": 3.0}
    stored = read_json(place / "result.json")
    write_json(place / "result.json", {**stored, "metric": "classification", "totals": totals, **more})
    lines = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    answers = [{**line, "reference": "<b>", "answer": "<b>" if line["score"] else "x"} for line in lines]
    (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))


def test_totals_the_confusion_matrix_and_empty_answers_are_in_every_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    of_labels(run, "base", empty=0.25)
    of_labels(run, step_name(300))
    report.write(run.path)
    task = read(run)["task"]
    assert task["totals"]["macro_f1"] == {"base": 0.4, "few_shot": None, "tuned": 0.4}
    assert task["empty"] == {"base": 0.25, "few_shot": 0.0, "tuned": 0.0}
    assert task["confusion"]["counts"] == [[188, 12]]
    page, text = run.report("html").read_text(), run.report("md").read_text()
    for shown in (page, text):
        assert "macro-F1" in shown
        assert "31.25" in shown
        assert "empty answers" in shown
        assert "25.0%" in shown
        assert "Confusion of the tuned model" in shown or "confusion of the tuned model" in shown
        assert "confusion[" not in shown
        assert "<b> ->" not in shown
    assert ">188<" in page
    assert re.search(r"^\| &lt;b> *\| +188 \| +12 \|", text, flags=re.M)


def test_of_choices_the_report_shows_the_one_that_was_scored(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    path = run.results(step_name(300), "tickets") / "samples.jsonl"
    choices = [{"text": "the likeliest", "nats": -1.0, "tokens": 1}, {"text": "the scored", "nats": -1.1, "tokens": 9}]
    told = {"response": "the likeliest", "answer": "the scored", "choices": choices}
    lines = [{**json.loads(line), **told} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write(run.path)
    page = run.report("html").read_text()
    assert "the scored" in page
    assert "the likeliest" not in page


def test_tensorboard_has_totals_strengths_confusion_matrices_and_answers_once(tmp_path: Path) -> None:
    totals = {"macro_f1": 0.4, "confusion[a -> a]": 1.0}
    stored = result(6).model_copy(update={"totals": totals, "empty": 0.5})
    of = {"moods": Scored(stored, tuple(samples(RIGHT, [*NAMED[:5], "<script>"])), False)}
    scores = Scores((Model("base", None, "m", 0),), {"base": of})
    points = tuple(Point(s, 0.5 + s / 4, 0.1, 0.9, s / 2, 0.0, 1.0, True) for s in (0.0, 0.25, 1.0))
    run = RunDirectory(tmp_path)
    for _ in range(2):  # the second takes the place of the first
        log(run, scores, summarise(scores, {}, 0.05, {}))
        log_strength(run, Frontier(30, 1.0, "best", points))
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {
        *(f"eval/moods/{name}" for name in ("classification", "total/macro_f1", "empty")),
        *(f"eval/strength/{name}" for name in ("task_accuracy", "mean_drop")),
    }
    curve = [(e.step, e.value) for e in events.Scalars("eval/strength/task_accuracy")]
    assert curve == [(0, 0.5), (25, 0.5625), (100, 0.75)]
    assert tags["images"] == ["confusion/moods"]
    assert len(events.Images("confusion/moods")) == 1
    (text,) = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("samples/moods/text_summary"))
    assert "**Answered (score 1)**" in text
    assert text.count("**Right**") == 3
