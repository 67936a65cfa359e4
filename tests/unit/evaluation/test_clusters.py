"""Items that share a passage, from the row to the score."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tasks import config_of

from distributed_ft.artifacts import RunDirectory, read_json_lines, write_json
from distributed_ft.config.tasks import MetricTask
from distributed_ft.data.examples import Example, Message
from distributed_ft.errors import CheckpointError, DataError, EvaluationError
from distributed_ft.evaluation.clusters import rows_of
from distributed_ft.evaluation.report.scores import Scores, estimate
from distributed_ft.evaluation.scoring import Model, score, task_digest
from distributed_ft.evaluation.stats import mean
from distributed_ft.evaluation.task import Generate, Response, Score
from distributed_ft.evaluation.tasks import build_task
from distributed_ft.evaluation.tasks.exact_match import ExactMatch
from distributed_ft.evaluation.tasks.rule import RuledTask


def task(folder: Path, *passages: object, **keys: object) -> MetricTask:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "passage": p} for i, p in enumerate(passages)]
    lines = [{k: v for k, v in row.items() if v is not ...} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config_of(name="reading", path=str(folder / "rows.jsonl"), **keys)


class Recites:
    """An engine that knows the answers to some questions."""

    def __init__(self, knows: set[str]) -> None:
        self.knows = knows

    def use(self, weights: Path | None) -> None: ...

    def batches(self, requests: list[Generate]) -> list[list[int]]:
        return [list(range(len(requests)))]

    def answers(self, batches: list[list[Generate]]) -> Iterator[tuple[int, list[Response]]]:
        for place, batch in enumerate(batches):
            asked = [request.messages[-1].content for request in batch]
            yield place, [Response((q.replace("q", "a") if q in self.knows else "?",)) for q in asked]


def test_rows_are_of_the_cluster_that_their_column_names(tmp_path: Path) -> None:
    rows = rows_of(task(tmp_path, "Rome", "Rome", 7, "x" * 500, cluster="passage"))
    assert [row.cluster for row in rows[:3]] == ["Rome", "Rome", "7"]
    assert len(rows[3].cluster or "") == 64  # a whole passage is told by its digest
    assert [row.cluster for row in rows_of(task(tmp_path, "Rome"))] == [None]


@pytest.mark.parametrize("passage", [..., None, "", " "])
def test_a_row_of_no_cluster_is_refused_with_file_line_and_key(tmp_path: Path, passage: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: evaluation\.tasks\[reading\]\.cluster: passage: .*nothing"):
        rows_of(task(tmp_path, "Rome", passage, cluster="passage"))


def test_clusters_reach_samples_result_and_report(tmp_path: Path) -> None:
    reading = build_task(task(tmp_path, *(f"p{i // 5}" for i in range(60)), cluster="passage"))
    knows = {f"q{i}" for i in range(60) if i // 5 in (0, 1, 2, 3, 4, 5, 9)} - {"q0", "q8"}
    run, model = RunDirectory(tmp_path), Model("base", None, "digest", 0)
    found = score(run, Recites(knows), model, reading, task_digest(reading, {}, ()))
    samples = run.samples("base", "reading")
    assert [sample.cluster for sample in samples[4:6]] == ["p0", "p1"]
    scores = [sample.score for sample in samples]
    expected = mean(scores, [sample.cluster for sample in samples])
    assert (found.result.stderr, found.result.clusters) == (expected.stderr, 12)
    assert found.result.stderr > 1.8 * mean(scores).stderr
    shown = estimate(Scores(run).result("base", "reading"))
    assert shown is not None
    assert shown.high - shown.low > 0.4  # of 12 passages, not of 60 items


def test_clusters_are_part_of_the_question_and_no_key_changes_nothing(tmp_path: Path) -> None:
    plain = build_task(task(tmp_path, "Rome", "Rome", "Bern")).digest
    clustered = build_task(task(tmp_path, "Rome", "Rome", "Bern", cluster="passage")).digest
    assert plain != clustered
    assert clustered != build_task(task(tmp_path, "Rome", "Bern", "Bern", cluster="passage")).digest


class Broken(ExactMatch):
    def score(self, example: Example, response: Response) -> Score:
        return Score(math.nan)


def test_a_task_that_scores_nan_is_an_error_that_names_item_and_metric(tmp_path: Path) -> None:
    messages = (Message("user", "q1"), Message("assistant", "a1"))
    broken = RuledTask("broken", (Example("item-1", messages, 1, "rows.jsonl", None),), Broken(8))
    with pytest.raises(EvaluationError, match="item 'item-1': its exact_match is nan"):
        score(RunDirectory(tmp_path), Recites(set()), Model("base", None, "d", 0), broken, "digest")


def test_a_nan_on_disk_is_refused_by_name(tmp_path: Path) -> None:
    reading = build_task(task(tmp_path, "Rome", "Bern"))
    run = RunDirectory(tmp_path)
    score(run, Recites({"q1"}), Model("base", None, "digest", 0), reading, "digest")
    lines = read_json_lines(run.results("base", "reading") / "samples.jsonl")
    text = "".join(json.dumps({**line, "score": math.nan}) + "\n" for line in lines)
    (run.results("base", "reading") / "samples.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=r"samples\.jsonl: a line that is no sample"):
        Scores(run).samples("base", "reading")
    result = json.loads((run.results("base", "reading") / "result.json").read_text())
    (run.results("base", "reading") / "result.json").write_text(json.dumps({**result, "score": math.nan}))
    with pytest.raises(CheckpointError, match="evaluate again"):
        Scores(run)
    write_json(run.results("base", "reading") / "result.json", result)
