"""What the audit finds of what was planted, and what it says of data with nothing wrong.

    python -m benchmarks.audit_quality [--rows 1000] [--seeds 3] [--out FILE]

Each kind of fault is planted into clean data of several kinds (benchmarks/audit_corpora.py, audit_faults.py) at 0.5%,
2% and 10% of the rows. By rows: recall, the share of faulty rows that the right finding names; precision, the share of
the rows it names that are faulty. Required of each kind: recall >= 0.98, precision >= 0.95; and of the clean data: no
finding at all. Exit status 1 when something is missed.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.audit_corpora import CORPORA, Row, rows_of
from benchmarks.audit_faults import FAULTS, Fault, plant
from distributed_ft.data.audit.run import Audit, AuditSettings, File, Load, Reference, audit
from distributed_ft.data.examples import Example

RECALL, PRECISION = 0.98, 0.95
REFERENCE = 300  # items of the test set


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000, help="of a data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "audit_quality.json")
    given = parser.parse_args(arguments)
    scores = [score(name, fault, given.rows, range(given.seeds)) for name, fault in FAULTS.items()]
    clean = [c for corpus in CORPORA for c in clean_findings(corpus, given.rows, range(given.seeds))]
    harness.write_result(given.out, {"faults": scores, "clean": clean, "rows": given.rows, "seeds": given.seeds})
    print(table(scores))
    print(f"clean data: {len(CORPORA) * given.seeds} sets, findings: {clean or 'none'}")
    return int(bool(clean) or not all(passed(s) for s in scores))


def passed(score: dict[str, Any]) -> bool:
    return bool(score["recall"] >= RECALL and score["precision"] >= PRECISION)


def score(name: str, fault: Fault, size: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Recall and precision of one kind of fault over its corpora, rates and seeds, and the worst single case."""
    planted = named = right = 0
    worst = (1.0, "")
    for corpus, rate, seed in ((c, r, s) for c in fault.corpora for r in fault.rates for s in seeds):
        truth, found = trial(fault, corpus, rate, seed, size)
        planted, named, right = planted + len(truth), named + len(found), right + len(truth & found)
        agreement = len(truth & found) / len(truth | found)
        worst = min(worst, (agreement, f"{corpus} {rate:.1%} seed {seed}"))
    recall, precision = right / planted, right / named if named else 0.0
    return {
        "fault": name,
        "finding": fault.finding,
        "planted": planted,
        "named": named,
        "right": right,
        "recall": round(recall, 4),
        "precision": round(precision, 4),
        "worst": worst[1] if worst[0] < 1 else "",
    }


def trial(fault: Fault, corpus: str, rate: float, seed: int, size: int) -> tuple[set[int], set[int]]:
    """The lines with the fault, and those that the finding names."""
    rng = random.Random(f"{fault.finding} {corpus} {rate} {seed}")
    clean = rows_of(corpus, size, seed)
    prompts = {row.prompt for row in clean}
    reference = [row for row in rows_of(corpus, REFERENCE, 1000 + seed) if row.prompt not in prompts]
    rows, truth = plant(clean, reference, fault, rate, rng)
    found = audited(rows, reference)
    return truth, {line for f in found.findings if f.id == fault.finding for line in f.rows}


def clean_findings(corpus: str, size: int, seeds: Sequence[int]) -> Iterator[str]:
    for seed in seeds:
        rows = rows_of(corpus, size, seed)
        prompts = {row.prompt for row in rows}
        found = audited(rows, [r for r in rows_of(corpus, REFERENCE, 1000 + seed) if r.prompt not in prompts])
        yield from (f"{corpus} seed {seed}: {f.id} ({f.severity}) {f.message}" for f in found.findings)


def audited(rows: list[Row], reference: list[Row], settings: AuditSettings | None = None) -> Audit:
    test = Reference("test", "test.jsonl", True, loads(reference, "test.jsonl"))
    file = File("train.jsonl", loads(rows, "train.jsonl"))
    return audit([file], [test], settings or AuditSettings(), workers=1)


def loads(rows: list[Row], path: str) -> list[Load]:
    examples = [row.example(line, path) for line, row in enumerate(rows, 1)]
    return [partial(list[Example], examples[first : first + 1000]) for first in range(0, len(examples), 1000)]


def table(scores: list[dict[str, Any]]) -> str:
    lines = [f"{'fault':24s}{'finding':28s}{'planted':>8s}{'recall':>9s}{'precision':>11s}  worst case"]
    for s in scores:
        mark = "" if passed(s) else "  BELOW"
        lines.append(
            f"{s['fault']:24s}{s['finding']:28s}{s['planted']:8d}{s['recall']:9.4f}{s['precision']:11.4f}  "
            f"{s['worst']}{mark}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
