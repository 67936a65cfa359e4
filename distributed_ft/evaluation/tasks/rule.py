"""How the answers of a task over rows are asked for and scored: a metric."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed_ft.data.examples import Example
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


@dataclass(frozen=True)
class FreeText:
    """What rules have in common that ask for a text and score each by itself."""

    max_new_tokens: int

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens}

    def check(self, rows: Sequence[Example]) -> None:
        pass

    def chance(self, rows: Sequence[Example]) -> float:
        return 0.0

    def request(self, example: Example) -> Request:
        return Generate(example.id, question(example), self.max_new_tokens, example.tools)

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        return {}


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
        """Hex sha256 over the rows (order, ids, groups, content) and the rule."""
        content = [[row.id, row.group, row.digest, dict(row.columns)] for row in self.rows]
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
