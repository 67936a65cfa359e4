"""The tasks of a run: what it is trained for, and the general suite that it must not forget."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed_ft.config.paths import is_harness_name
from distributed_ft.config.schema import EvaluationConfig
from distributed_ft.config.tasks import UNASKED, HarnessTask, MetricTask, PassAtKTask, PerplexityTask, TaskConfig
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import read_examples
from distributed_ft.errors import ConfigError
from distributed_ft.evaluation.clusters import rows_of
from distributed_ft.evaluation.task import VALIDATION, Kind, Task
from distributed_ft.evaluation.tasks.build import rule_of
from distributed_ft.evaluation.tasks.exact_match import ExactMatch
from distributed_ft.evaluation.tasks.harness import harness_tasks
from distributed_ft.evaluation.tasks.rule import RuledTask
from distributed_ft.evaluation.tasks.validation import refuse_shared, split

SHIPPED_GENERAL = Path(__file__).parents[2] / "assets" / "general" / "test.jsonl"
SHIPPED_NAME = "general"


def build_task(config: MetricTask, kind: Kind = "task") -> RuledTask:
    """The task, its rows read and checked. Raises ConfigError or DataError, naming file, line or key."""
    rows = _rows(config)
    return RuledTask(config.name, rows, rule_of(config, rows), kind)


def with_validation(config: MetricTask) -> list[Task]:
    """The task, and behind it the one of the rows that choices are made by, where it has some: of kind `validation`,
    with a name of its own. Raises as `build_task`, and DataError for validation rows that are test rows too, or where
    no row would be left."""
    task = build_task(config)
    if config.validation is None:
        return [task]
    if isinstance(config.validation, float):
        test, rows = split(task.name, task.rows, config.validation)
    else:
        assert config.on_validation is not None
        test, rows = task.rows, _rows(config.on_validation)
        refuse_shared(task.name, test, rows)
    by = replace(task, name=task.name + VALIDATION, rows=rows, kind="validation")
    return [replace(task, rows=test), by]


def _rows(config: MetricTask) -> tuple[Example, ...]:
    return rows_of(config, text=isinstance(config, PerplexityTask))


def general_task(entry: str | MetricTask) -> Task:
    """One entry of `evaluation.general`: the word `shipped`, or a file of rows, scored by exact match; or a task."""
    if isinstance(entry, TaskConfig):
        return build_task(entry, "general")
    path = SHIPPED_GENERAL if entry == "shipped" else Path(entry)
    name = SHIPPED_NAME if entry == "shipped" else re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "rows"
    rows = tuple(read_examples(path))
    # No tokenizer writes more tokens than bytes: every right answer fits, and the end-of-turn token behind it.
    longest = max((len(row.messages[-1].content.encode()) for row in rows), default=0)
    return RuledTask(name, rows, ExactMatch(longest + 1), "general")


def _tasks_of(entry: MetricTask | HarnessTask) -> Sequence[Task]:
    if isinstance(entry, HarnessTask):
        return harness_tasks(entry, "task", f"evaluation.tasks[{entry.name}]")
    return with_validation(entry)


def _suites_of(entry: str | MetricTask | HarnessTask, index: int) -> Sequence[Task]:
    if isinstance(entry, str) and is_harness_name(entry):
        entry = HarnessTask(metric="harness", name=entry, task=entry)
    if isinstance(entry, HarnessTask):
        return harness_tasks(entry, "general", f"evaluation.general[{index}]")
    return [general_task(entry)]


def build_tasks(config: EvaluationConfig) -> tuple[Task, ...]:
    """Tasks first, each with its validation rows behind it, then the general suite, in the order written.

    Raises ConfigError, DataError: a task cannot be used, two have one name, or one would run code unasked.
    """
    for _, entry in config.entries:
        if isinstance(entry, PassAtKTask) and not config.allow_code_execution:
            raise ConfigError(f"evaluation.tasks[{entry.name}].metric: {UNASKED}")
    tasks = [task for entry in config.tasks for task in _tasks_of(entry)]
    tasks += [task for index, entry in enumerate(config.general) for task in _suites_of(entry, index)]
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
