"""Generated text against a reference, equal or not."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from distributed_ft.data.examples import Example
from distributed_ft.evaluation.task import Generate, Kind, Score, question, reference


@dataclass(frozen=True)
class ExactMatch:
    """1 if answer and reference are the same text, white space at both ends aside, else 0."""

    name: str
    rows: tuple[Example, ...]
    max_new_tokens: int
    kind: Kind = "task"
    metric: str = "exact_match"
    chance: float = 0.0
    version: int = 1

    @property
    def digest(self) -> str:
        return rows_digest(self.rows, [self.metric, self.version, self.max_new_tokens])

    def examples(self) -> Sequence[Example]:
        return self.rows

    def request(self, example: Example) -> Generate:
        return Generate(example.id, question(example), self.max_new_tokens, example.tools)

    def score(self, example: Example, response: str) -> Score:
        return Score(float(response.strip() == reference(example).strip()))


def rows_digest(rows: Sequence[Example], rules: list[object]) -> str:
    """Hex sha256 over the rows (order, ids, groups, clusters, content) and the rules they are scored by."""
    content = [[row.id, row.group, row.digest, *([row.cluster] if row.cluster else [])] for row in rows]
    return hashlib.sha256(json.dumps([content, rules], sort_keys=True).encode()).hexdigest()
