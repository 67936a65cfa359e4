"""Tasks over rows that a test writes down."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from distributed_ft.config.tasks import AnyTask, MetricTask
from distributed_ft.evaluation.task import Response, Score, Task
from distributed_ft.evaluation.tasks import build_task


def config_of(**keys: Any) -> MetricTask:
    """The section of a task, as run.yaml would have it."""
    config: MetricTask = TypeAdapter(AnyTask).validate_json(json.dumps(keys))
    return config


def task_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Task:
    """A task over rows, which are written into the folder."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_task(config_of(name="t", path=str(path), **keys))


def answered(answer: str, question: str = "q", **columns: Any) -> dict[str, Any]:
    """A row of a question and its answer."""
    return {"prompt": question, "completion": answer, **columns}


def score_of(task: Task, *texts: str) -> Score:
    """Of texts that answer the first row."""
    return task.score(task.examples()[0], Response(texts))
