"""The same question with different answers: one of them is wrong, or the question lacks what decides."""

import numpy as np

from distributed_ft.data.audit.formats import Forms
from distributed_ft.data.audit.forms import ARRAY, NUMBER, OBJECT, SHORT
from distributed_ft.data.audit.rows import Indices, Table
from distributed_ft.data.findings import Finding

_GENERIC = 0.02  # of the rows with one prompt: it is an invitation ("Write a joke."), not a question
_SHORT = 60  # characters of an answer that leave no room for saying the same in other words


def judge(table: Table, forms: Forms) -> list[Finding]:
    """Rows whose prompt is there with another answer; where most agree on one, only the others."""
    order = np.lexsort((np.arange(table.size), table.prompts))
    order = order[table.prompts[order] != 0]
    bounds = np.flatnonzero(np.diff(table.prompts[order])) + 1
    begins, ends = np.append(0, bounds), np.append(bounds, len(order))
    several = ends - begins > 1  # mostly none
    repeated = [order[b:e] for b, e in zip(begins[several], ends[several], strict=True)]
    apart = [rows for rows in repeated if len(np.unique(table.answers[rows])) > 1]
    agreeing = len(repeated) - len(apart)
    found = [order[:0]]
    for rows in apart:
        exact = forms.rows_of(rows, (SHORT, NUMBER, OBJECT, ARRAY)) | (table.answer_lengths[rows] <= _SHORT)
        generic = len(rows) > max(_GENERIC * table.size, 10) and len(np.unique(table.answers[rows])) > len(rows) // 2
        if not generic and (exact.all() or agreeing > len(apart)):
            found.append(_minority(table, rows))
    return table.finding(
        "conflict",
        np.concatenate(found),
        "the same question stands there with another answer; the model learns neither; settle on one, or add to the "
        "question what decides",
    )


def _minority(table: Table, rows: Indices) -> Indices:
    values, counts = np.unique(table.answers[rows], return_counts=True)
    if counts.max() > len(rows) / 2:
        rows = rows[table.answers[rows] != values[counts.argmax()]]
    return rows
