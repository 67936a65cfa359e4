"""How the answers of a task over rows are asked for and scored: a metric."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Generate, Kind, Request, Response, Score, Scored, question


class Rule(Protocol):
    """A metric: all that a task over rows is, but the rows. `settings`: what else of it can change a score."""

    @property
    def metric(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, object]: ...

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError, naming file and line, for a row that cannot be scored."""
        ...

    def chance(self, rows: Sequence[Example]) -> float:
        """Expected score of a guess."""
        ...

    def request(self, example: Example) -> Request: ...
    def score(self, example: Example, response: Response) -> Score: ...
    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]: ...


@runtime_checkable
class Judging(Protocol):
    """What asks a second model of each answer."""

    def judged(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[Response]: ...


@dataclass(frozen=True)
class FreeText:
    """What rules have in common that ask for a text and score each by itself."""

    max_new_tokens: int

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens}

    @property
    def open_ended(self) -> bool:
        """Whether answers are compared with no reference."""
        return False

    def check(self, rows: Sequence[Example]) -> None:
        pass

    def chance(self, rows: Sequence[Example]) -> float:
        return 0.0

    def request(self, example: Example) -> Request:
        open_ended = self.open_ended
        return Generate(example.id, question(example), self.max_new_tokens, example.tools, open_ended=open_ended)

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        return {}


def column(row: Example, name: str, metric: str, key: str) -> str:
    """The text in a column of a row, or DataError: `key` names the column in run.yaml."""
    if not row.columns.get(name, "").strip():
        raise DataError(
            f"{place(row)}: nothing in the column {name!r}, which metric {metric} looks into; fill it, or name another "
            f"column by {key}"
        )
    return row.columns[name]


def listed(row: Example, name: str, metric: str, key: str) -> list[Any]:
    """The list in a column of a row: a JSON list, as itself or as text. Raises DataError."""
    text = column(row, name, metric, key)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found:
        raise DataError(
            f"{place(row)}: the column {name!r} holds {shorten(text)}, not a list with something in it; metric "
            f'{metric} needs a JSON list such as ["a", "b"], or another column named by {key}'
        )
    return found


def texts(row: Example, name: str, metric: str, key: str) -> tuple[str, ...]:
    """The list of texts in a column; numbers and booleans become text. Raises DataError."""
    found = listed(row, name, metric, key)
    for value in found:
        if not isinstance(value, str | int | float) or (isinstance(value, str) and not value.strip()):
            raise DataError(
                f"{place(row)}: the list in the column {name!r} holds {shorten(value)}, which is no text; "
                "correct the row"
            )
    return tuple(value if isinstance(value, str) else json.dumps(value) for value in found)


def place(row: Example) -> str:
    """`file:line`, for messages."""
    return f"{row.path}:{row.line}"


@dataclass(frozen=True)
class RuledTask:
    """Rows under a rule: a `Task`. Raises DataError for rows that the rule cannot score."""

    name: str
    rows: tuple[Example, ...]
    rule: Rule
    kind: Kind = "task"

    def __post_init__(self) -> None:
        self.rule.check(self.rows)

    @property
    def metric(self) -> str:
        return self.rule.metric

    @property
    def version(self) -> int:
        return self.rule.version

    @property
    def chance(self) -> float:
        return self.rule.chance(self.rows)

    @property
    def digest(self) -> str:
        """Hex sha256 over the rows (order, ids, groups, clusters, content) and the rule."""
        content = [[row.id, row.group, row.cluster, row.digest, dict(row.columns)] for row in self.rows]
        rule = [self.metric, self.version, dict(self.rule.settings)]
        return hashlib.sha256(json.dumps([content, rule], sort_keys=True).encode()).hexdigest()

    def examples(self) -> Sequence[Example]:
        return self.rows

    def request(self, example: Example) -> Request:
        return self.rule.request(example)

    def score(self, example: Example, response: Response) -> Score:
        return self.rule.score(example, response)

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        return self.rule.totals(scored)

    def judged(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[Response]:
        """The responses with what a judge wrote of them, where the metric has one. Raises EvaluationError."""
        return self.rule.judged(examples, responses) if isinstance(self.rule, Judging) else list(responses)
