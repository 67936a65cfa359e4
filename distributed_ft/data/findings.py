"""What an audit has to say: the findings, their ids, and how bad each is.

The ids are a contract (docs/data.md lists them); a suffix may refine one, as in `contamination.tickets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distributed_ft.config.schema import FINDING_IDS

Severity = Literal["info", "warning", "error"]
# From which share of a file's rows a finding is an error, and stops a run. 0: from the first row; absent: never.
_ERROR_FROM = {
    "contamination": 0.0,
    "answer.empty": 0.0,
    "secret": 0.0,
    "template": 0.0,
    "format.drift": 0.01,
    "format.schema": 0.01,
    "answer.placeholder": 0.01,
    "encoding": 0.01,
    "answer.truncated": 0.05,
    "conflict": 0.05,
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One of the rows that a finding is about, as it may be shown: cut, and personal data masked."""

    row: int  # line of the file, counted from 1
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or likely wrong, with the rows of one file."""

    id: str
    severity: Severity
    count: int  # rows it is about; may be more than are listed
    rows: Sequence[int]  # their lines in `path`, counted from 1, ascending
    message: str  # what is wrong, what follows from it, and the remedy
    path: str = ""  # the file; empty: the whole of the data
    examples: tuple[Shown, ...] = ()
    waived: bool = False  # data.waive names it: it stops nothing


def contract_id(name: str) -> str | None:
    """The id of the contract that `name` is, or refines; None: it is neither."""
    return next((i for i in sorted(FINDING_IDS, key=len, reverse=True) if name == i or name.startswith(i + ".")), None)


def severity_of(name: str, count: int, of: int) -> Severity:
    """How bad it is that `count` of `of` rows have the finding `name`."""
    base = contract_id(name)
    assert base is not None, name
    share = _ERROR_FROM.get(base)
    return "error" if share is not None and count > 0 and count >= share * of else "warning"


def is_waived(name: str, waived: Sequence[str]) -> bool:
    """Whether `waived` (ids, or what they begin with: `answer`, `contamination`) names this finding."""
    return any(name == w or name.startswith(w + ".") for w in waived)
