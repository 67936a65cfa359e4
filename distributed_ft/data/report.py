"""What was read, cut, dropped and drawn: the content of `data/report.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from distributed_ft.data.findings import Finding, is_waived
from distributed_ft.data.order import Order
from distributed_ft.data.template_check import told
from distributed_ft.records import SCHEMA

CUT = ("truncated", "split", "dropped", "without_supervised")  # what may happen to a row longer than data.seq_len
_MOST_ROWS = 100_000  # lines listed in a finding; `count` says how many there are


@dataclass
class RowCounts:
    """What became of the rows of one source, which may be a folder of files."""

    path: str
    rows_in: int = 0  # rows of the source
    held_out: int = 0  # of them, taken for validation
    rows_used: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    with_tools: int = 0
    # By what happened to rows (one of CUT, or the id of a finding about the chat template) and file: their lines.
    noted: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def note(self, what: str, path: str, lines: Sequence[int]) -> None:
        """That it happened to the rows that begin at these lines of a file, counted from 1."""
        self.noted.setdefault(what, {}).setdefault(path, []).extend(lines)

    def add(self, other: "RowCounts") -> None:
        """Count the rows of another part of the source as well."""
        for name in (f.name for f in fields(self) if f.name not in ("path", "noted")):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for what, files in other.noted.items():
            for path, lines in files.items():
                self.note(what, path, lines)

    def summary(self) -> dict[str, Any]:
        """The numbers, for one entry of `sources`."""
        cut = {what: sum(map(len, self.noted.get(what, {}).values())) for what in CUT}
        return {name: value for name, value in vars(self).items() if name != "noted"} | cut


def base_report(
    train: Sequence[RowCounts], validation: RowCounts | None, seq_len: int, rows_bad: int
) -> dict[str, Any]:
    """The part of the report that does not depend on how rows are mixed and packed; `rows_bad`: in quarantine."""
    parts = [*train, *([validation] if validation else [])]
    return {
        "schema": SCHEMA,
        "findings": [asdict(finding) for part in parts for finding in _findings(part, seq_len)],
        "rows_in": sum(part.rows_in for part in train),
        "rows_used": sum(part.rows_used for part in train),
        "rows_bad": rows_bad,
        "tokens": sum(part.tokens for part in train),
        "supervised_tokens": sum(part.supervised_tokens for part in train),
        "seq_len": seq_len,
        "sources": [part.summary() for part in train],
        "validation": validation.summary() if validation else None,
    }


def with_mixture(report: dict[str, Any], order: Order, proof: Sequence[Finding]) -> dict[str, Any]:
    """The report with what the first epoch draws, how full its sequences are, and what is wrong with the template."""
    total, weights, fractions = sum(order.counts), order.prepared.weights, order.prepared.fractions
    sources = [
        {
            **source,
            "weight": weights[i] if weights else None,
            "fraction": fractions[i] if fractions else None,
            "rows_per_epoch": order.counts[i],
            "drawn_share": order.counts[i] / total,
        }
        for i, source in enumerate(report["sources"])
    ]
    sequences = order.num_packs(0)
    return {
        **report,
        "findings": report["findings"] + [asdict(finding) for finding in (*proof, *_mixture_findings(sources, order))],
        "sources": sources,
        "rows_per_epoch": total,
        "sequences_per_epoch": sequences,
        "packing_efficiency": order.num_supervised(0) / (sequences * order.seq_len),  # supervised tokens / slots
        "packing_fill": order.num_tokens(0) / (sequences * order.seq_len),  # tokens / slots
    }


def with_audit(report: dict[str, Any], audit: Mapping[str, Any], waive: Sequence[str]) -> dict[str, Any]:
    """The report with what the audit found, the worst first, and which of all findings the user has waived."""
    rank = {"error": 0, "warning": 1, "info": 2}
    findings = [
        {**finding, "waived": is_waived(finding["id"], waive)} for finding in [*audit["findings"], *report["findings"]]
    ]
    findings.sort(key=lambda finding: (finding["waived"], rank[finding["severity"]]))
    return {**report, "findings": findings, "statistics": audit["statistics"], "waive": list(waive)}


def stopping(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The findings that a run must not begin with."""
    return [f for f in report["findings"] if f["severity"] == "error" and not f["waived"]]


def line_of(finding: Mapping[str, Any]) -> str:
    """A finding in one line: `train.jsonl:17: format.drift (lines 17, 23, 31, …): …`."""
    rows = finding["rows"]
    place = f"{finding['path']}:{rows[0]}: " if rows and finding["path"] else finding["path"] and f"{finding['path']}: "
    listed = ", ".join(map(str, rows[:3])) + (", …" if finding["count"] > 3 else "")
    lines = f" ({'lines' if len(rows) > 1 else 'line'} {listed})" if rows else ""
    return f"{place}{finding['id']}{lines}: {finding['message']}"


def _mixture_findings(sources: list[dict[str, Any]], order: Order) -> list[Finding]:
    """Weights can leave most of a file, or all of it, unseen: the file that is used up first ends the epoch."""
    epochs = order.total_steps / order.steps_per_epoch
    found = []
    for source in sources:
        if source["fraction"] is not None:
            continue  # replay: of a large file another part in each epoch, as was asked
        rows, drawn = source["rows_used"], source["rows_per_epoch"]
        if drawn < rows and drawn * epochs < 0.5 * rows:
            message = (
                f"its share draws {drawn:,} of {rows:,} rows in an epoch, so in {epochs:.3g} epochs "
                "most are never seen; raise its share, add rows to the other files, or leave all weights out"
            )
            unseen = rows - math.ceil(drawn * epochs)
            found.append(Finding("imbalance.mixture", "warning", unseen, [], message, source["path"]))
    return found


def _findings(part: RowCounts, seq_len: int) -> list[Finding]:
    longer = f"longer than data.seq_len ({seq_len} tokens)"
    said = {
        "truncated": f"{longer} and cut there; raise data.seq_len to keep the whole answers, or set data.over_long: "
        "split",
        "split": f"{longer} and cut into several documents",
        "dropped": f"{longer} and left out; raise data.seq_len to use them",
        "without_supervised": "nothing of the answer is within data.seq_len, so these rows train nothing; shorten "
        "their questions, raise data.seq_len, or set data.over_long: drop",
    }
    ids = {"truncated": "seq_len", "without_supervised": "lost"}
    cut = [
        Finding(
            f"answer.truncated.{ids.get(what, what)}",
            "warning",
            len(lines),
            lines[:_MOST_ROWS],
            f"{len(lines):,} of {part.rows_in:,} rows: {said[what]}",
            path,
        )
        for what in CUT
        for path, lines in part.noted.get(what, {}).items()
    ]
    faults = sorted(what for what in part.noted if what not in CUT)
    return cut + [f for what in faults for f in told(what, part.noted[what], part.rows_in)]
