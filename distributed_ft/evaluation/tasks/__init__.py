"""The tasks of a run: what it is trained for, and the general suite that it must not forget."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from distributed_ft.config.schema import EvaluationConfig, TaskConfig
from distributed_ft.data.reading import read_examples
from distributed_ft.errors import ConfigError
from distributed_ft.evaluation.clusters import rows_of
from distributed_ft.evaluation.task import Kind, Task
from distributed_ft.evaluation.tasks.exact_match import ExactMatch
from distributed_ft.evaluation.tasks.json_fields import json_fields
from distributed_ft.evaluation.tasks.rule import Rule, RuledTask

SHIPPED_GENERAL = Path(__file__).parents[2] / "assets" / "general" / "test.jsonl"
SHIPPED_NAME = "general"


def build_task(config: TaskConfig, kind: Kind = "task") -> Task:
    """The task, its rows read and checked. Raises ConfigError or DataError, naming file, line or key."""
    rule = _rule(config)
    return RuledTask(config.name, rows_of(config), rule, kind)


def _rule(config: TaskConfig) -> Rule:
    match config.metric:
        case "exact_match":
            if config.json_schema is not None:
                raise ConfigError(
                    f"evaluation.tasks[{config.name}].schema: {config.json_schema}: metric exact_match has no use for "
                    "a schema; set metric: json_fields, or remove it"
                )
            return ExactMatch(config.max_new_tokens)
        case "json_fields":
            return json_fields(config.name, config.max_new_tokens, config.json_schema)
        case unknown:
            assert_never(unknown)


def general_task(entry: str) -> Task:
    """One entry of `evaluation.general`: the word `shipped`, or a file of rows; scored by exact match."""
    path = SHIPPED_GENERAL if entry == "shipped" else Path(entry)
    name = SHIPPED_NAME if entry == "shipped" else re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "rows"
    rows = tuple(read_examples(path))
    # No tokenizer writes more tokens than bytes: every right answer fits, and the end-of-turn token behind it.
    longest = max((len(row.messages[-1].content.encode()) for row in rows), default=0)
    return RuledTask(name, rows, ExactMatch(longest + 1), "general")


def build_tasks(config: EvaluationConfig) -> tuple[Task, ...]:
    """Tasks first, then the general suite, in the order written. Raises ConfigError when two have one name."""
    tasks: Sequence[Task] = [build_task(t) for t in config.tasks] + [general_task(entry) for entry in config.general]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"evaluation: two tasks are named {name!r} (a general suite has the name of its file, the shipped one "
                f"is {SHIPPED_NAME!r}); rename one, for its results would overwrite the other's"
            )
    if not tasks:
        raise ConfigError("evaluation: neither tasks nor general is given; name what the model is to be judged on")
    return tuple(tasks)
