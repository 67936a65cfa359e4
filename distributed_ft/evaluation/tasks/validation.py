"""The rows of a task that choices are made by, apart from those that it is judged by. Pure."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from distributed_ft.data.examples import Example
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import question


def split(name: str, rows: Sequence[Example], fraction: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Test and validation rows, each in the order of `rows`: in the order of hashes, `fraction` of them is validation.

    A function of the content, so that the order of the rows moves none; what asks the same stays on one side. Where
    more rows ask it than are wanted, it is no question but an invitation ("Tell me a joke."): of these only equal ones
    do. Raises DataError when either side would be empty.
    """
    wanted = round(fraction * len(rows))
    asked = Counter(_asked(row) for row in rows)
    groups: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[_asked(row) if asked[_asked(row)] <= max(1, wanted) else _whole(row)].append(place)
    chosen: set[int] = set()
    for group in sorted(groups):
        if len(chosen) >= wanted:
            break
        chosen.update(groups[group])
    if not 0 < len(chosen) < len(rows):
        left = "validation" if not chosen else "test"
        raise DataError(
            f"{rows[0].path}: evaluation.tasks[{name}].validation: {fraction:g} of {len(rows)} rows leaves no {left} "
            "row (rows that ask the same stay together); give another fraction, more rows, or a file of validation rows"
        )
    test = tuple(row for place, row in enumerate(rows) if place not in chosen)
    return test, tuple(row for place, row in enumerate(rows) if place in chosen)


def refuse_shared(name: str, test: Sequence[Example], validation: Sequence[Example]) -> None:
    """Raises DataError for a validation row that is a test row too, or asks what one asks (see `split` for what is no
    question): what is chosen by it would be judged on what it was chosen by."""
    known: dict[str, Example] = {}
    answers: dict[str, set[str]] = defaultdict(set)
    for row in test:
        known.setdefault(_whole(row), row)
        known.setdefault(_asked(row), row)
        answers[_asked(row)].add(_whole(row))
    shared = []
    for row in validation:
        same = known.get(_whole(row)) or (known.get(_asked(row)) if len(answers[_asked(row)]) == 1 else None)
        if same is not None:
            shared.append((row, same))
    if shared:
        row, same = shared[0]
        raise DataError(
            f"{row.path}:{row.line}: evaluation.tasks[{name}].validation: row {row.id!r} asks what the test row "
            f"{same.path}:{same.line} asks{f', and so do {len(shared) - 1} more' if len(shared) > 1 else ''}; remove "
            "it here, or there: a checkpoint that is chosen by a row cannot be judged by it"
        )


def _asked(row: Example) -> str:
    """Of what a model is shown; columns are what further metrics ask (choices, a passage)."""
    shown = [[m.role, m.content, m.extras] for m in question(row)]
    return _hash("asked", shown, row.tools, dict(row.columns))


def _whole(row: Example) -> str:
    return _hash("whole", row.digest, dict(row.columns))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
