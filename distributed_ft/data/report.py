"""What was read, cut, dropped and drawn: the content of `data/report.json`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from distributed_ft.data.order import Order
from distributed_ft.records import SCHEMA

_MOST_ROWS = 20  # ids listed in a finding; `count` says how many there are


@dataclass(frozen=True)
class Finding:
    """Something a user should know about the data that is not wrong enough to stop."""

    id: str
    severity: Literal["info", "warning"]
    count: int  # rows
    rows: list[str]  # ids of the first of them
    message: str


@dataclass
class RowCounts:
    """What became of the rows of one file."""

    path: str
    rows_in: int  # rows of the file
    held_out: int = 0  # of them, taken for validation
    rows_used: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: list[str] = field(default_factory=list)  # ids
    dropped: list[str] = field(default_factory=list)
    without_supervised: list[str] = field(default_factory=list)
    without_end: list[str] = field(default_factory=list)
    with_specials: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The numbers, for one entry of `sources`."""
        return {
            "path": self.path,
            "rows_in": self.rows_in,
            "held_out": self.held_out,
            "rows_used": self.rows_used,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "truncated": len(self.truncated),
            "dropped": len(self.dropped),
        }


def base_report(
    train: Sequence[RowCounts], validation: RowCounts | None, seq_len: int, duplicates: list[str], leaked: list[str]
) -> dict[str, Any]:
    """The part of the report that does not depend on how rows are mixed and packed.

    `duplicates`: training rows equal to an earlier one; `leaked`: validation rows that are training rows too.
    """
    parts = [*train, *([validation] if validation else [])]
    return {
        "schema": SCHEMA,
        "findings": [asdict(finding) for finding in _findings(parts, seq_len, duplicates, leaked)],
        "rows_in": sum(part.rows_in for part in train),
        "rows_used": sum(part.rows_used for part in train),
        "tokens": sum(part.tokens for part in train),
        "supervised_tokens": sum(part.supervised_tokens for part in train),
        "seq_len": seq_len,
        "sources": [part.summary() for part in train],
        "validation": validation.summary() if validation else None,
    }


def with_mixture(report: dict[str, Any], order: Order) -> dict[str, Any]:
    """The report with what the first epoch draws and how full its sequences are."""
    total, weights = sum(order.counts), order.prepared.weights
    sources = [
        {
            **source,
            "weight": weights[i] if weights else None,
            "rows_per_epoch": order.counts[i],
            "drawn_share": order.counts[i] / total,
        }
        for i, source in enumerate(report["sources"])
    ]
    sequences = order.num_packs(0)
    return {
        **report,
        "findings": report["findings"] + [asdict(finding) for finding in _mixture_findings(sources, order)],
        "sources": sources,
        "rows_per_epoch": total,
        "sequences_per_epoch": sequences,
        "packing_efficiency": order.num_tokens(0) / (sequences * order.seq_len),
    }


def _mixture_findings(sources: list[dict[str, Any]], order: Order) -> list[Finding]:
    """Weights can leave most of a file, or all of it, unseen: the file that is used up first ends the epoch."""
    epochs = order.total_steps / order.steps_per_epoch
    found = []
    for source in sources:
        rows, drawn = source["rows_used"], source["rows_per_epoch"]
        if drawn < rows and drawn * epochs < 0.5 * rows:
            message = (
                f"{source['path']}: its weight draws {drawn:,} of {rows:,} rows in an epoch, so in {epochs:.3g} epochs "
                "most are never seen; raise its weight, add rows to the other files, or leave all weights out"
            )
            found.append(Finding("rows_never_drawn", "warning", rows - math.ceil(drawn * epochs), [], message))
    return found


def _findings(parts: list[RowCounts], seq_len: int, duplicates: list[str], leaked: list[str]) -> list[Finding]:
    cases: list[tuple[str, Literal["info", "warning"], list[str], str]] = [
        (
            "truncated_rows",
            "warning",
            [name for part in parts for name in part.truncated],
            f"longer than data.seq_len ({seq_len} tokens) and cut there; raise data.seq_len to keep the whole answers",
        ),
        (
            "dropped_rows",
            "warning",
            [name for part in parts for name in part.dropped],
            f"longer than data.seq_len ({seq_len} tokens) and left out; raise data.seq_len to use them",
        ),
        (
            "no_supervised_tokens",
            "warning",
            [name for part in parts for name in part.without_supervised],
            "nothing of the answer is within data.seq_len, so these rows train nothing; shorten their questions, "
            "raise data.seq_len, or set data.over_long: drop",
        ),
        (
            "no_end_of_turn",
            "warning",
            [name for part in parts for name in part.without_end],
            "the chat template closes these answers with no special token, so the model does not learn where to "
            "stop; correct the tokenizer's chat_template",
        ),
        (
            "special_tokens_in_text",
            "warning",
            [name for part in parts for name in part.with_specials],
            "the text contains special tokens of the tokenizer, which the model takes for the end of a turn or "
            "the like; remove them if they are no part of the task",
        ),
        ("duplicate_rows", "info", duplicates, "equal to an earlier training row, and therefore seen more often"),
        (
            "validation_rows_in_training",
            "warning",
            leaked,
            "validation rows that are training rows too: the validation loss is too good; remove them from one file",
        ),
    ]
    return [Finding(name, severity, len(rows), rows[:_MOST_ROWS], text) for name, severity, rows, text in cases if rows]
