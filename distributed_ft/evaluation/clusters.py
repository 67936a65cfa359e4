"""The rows of a task, each with what it shares with others: `evaluation.tasks[].cluster`."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from distributed_ft.config.tasks import TaskConfig
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import Reading, read_examples
from distributed_ft.errors import DataError
from distributed_ft.evaluation.stats import Clusters
from distributed_ft.records import Sample

LONGEST = 80  # characters of a name; of a passage that is longer, its digest is enough


def rows_of(config: TaskConfig, text: bool = False) -> tuple[Example, ...]:
    """The task's rows, which may be plain `text`. Raises DataError, naming file, line and key."""
    column = config.cluster
    rows = read_examples(Reading.of(config, () if column is None else (column,)), text=text)
    if column is None:
        return tuple(rows)
    return tuple(_of_cluster(row, column, config.name) for row in rows)


def clusters_of(samples: Sequence[Sample]) -> Clusters:
    """Of each item; None where none is in a cluster."""
    return [sample.cluster for sample in samples] if any(sample.cluster for sample in samples) else None


def _of_cluster(row: Example, column: str, task: str) -> Example:
    name = row.columns.get(column, "").strip()
    if not name:
        raise DataError(
            f"{row.path}:{row.line}: evaluation.tasks[{task}].cluster: {column}: the row has nothing in this column; "
            "give every row the name of what it shares with others, its own if with none, or remove the key"
        )
    short = name if len(name) <= LONGEST else hashlib.sha256(name.encode()).hexdigest()
    return replace(row, cluster=short)
