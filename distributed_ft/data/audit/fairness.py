"""How the answers differ between the groups of a column that the user calls sensitive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed_ft.data.audit.balance import Labels
from distributed_ft.data.audit.rows import Rows, Table
from distributed_ft.data.findings import Finding

_DIFFERENCE = 0.10  # between two groups' shares of a label
_Z = 1.959964  # of a 95% interval
_GROUPS = 20
_LEAST = 20  # rows of a group


@dataclass(frozen=True, slots=True)
class Groups:
    """Of a chunk: the group of each row; empty: none."""

    names: list[str]


def look(rows: Rows, column: str | None) -> Groups:
    return Groups([e.columns.get(column, "") for e in rows.examples] if column else [])


def wilson(count: int, total: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927)."""
    share, square = count / total, _Z * _Z / total
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * float(np.sqrt(share * (1 - share) / total + square / total / 4))
    return middle - half, middle + half


def judge(
    table: Table, looked: Sequence[Groups], labels: Labels, column: str | None
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """The findings, and the table: of each label and group its share with an interval."""
    if column is None:
        return [], []
    groups = np.array([name for facts in looked for name in facts.names], dtype=object)
    names = sorted({name for name in groups.tolist() if name})
    findings: list[Finding] = []
    rates: list[dict[str, Any]] = []
    if not names:
        return _without(table, column), rates
    for field, (values, codes) in labels.fields.items():
        for code, value in enumerate(values):
            told = []
            for name in names[:_GROUPS]:
                mine = (groups == name) & (codes >= 0)
                total, count = int(mine.sum()), int((codes[mine] == code).sum())
                if total >= _LEAST:
                    low, high = wilson(count, total)
                    told.append({"label": f"{field} = {value}", "group": name, "n": total, "share": count / total,
                                 "low": low, "high": high})  # fmt: skip
            rates += told
            findings += _unequal(table, column, told, groups, codes == code)
    return findings, rates


def _unequal(table: Table, column: str, told: list[dict[str, Any]], groups: Any, given: Any) -> list[Finding]:
    if len(told) < 2:
        return []
    least, most = min(told, key=lambda t: float(t["share"])), max(told, key=lambda t: float(t["share"]))
    if most["low"] <= least["high"] or most["share"] - least["share"] <= _DIFFERENCE:
        return []
    spans = " and ".join(
        f"{t['share']:.0%} of {t['group']!r} ({t['low']:.0%} to {t['high']:.0%}, n = {t['n']:,})" for t in (most, least)
    )
    return table.finding(
        "fairness",
        np.flatnonzero(given & ((groups == most["group"]) | (groups == least["group"]))),
        f"{most['label']} is the answer for {spans} of column {column!r}; the model learns the difference; see whether "
        "it is meant, or balance the rows",
    )


def _without(table: Table, column: str) -> list[Finding]:
    return [
        Finding(
            id="fairness.column",
            severity="warning",
            count=table.size,
            rows=(),
            message=f"data.audit.sensitive: no row has a column {column!r}, so nothing was compared; correct the name",
            path=table.path,
        )
    ]
