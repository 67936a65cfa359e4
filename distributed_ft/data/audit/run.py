"""The audit of training files: every check over every chunk, by all cores, then one judgement a file."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from distributed_ft.config.schema import AuditConfig
from distributed_ft.data.audit import (
    answers,
    balance,
    characters,
    conflicts,
    contamination,
    duplicates,
    fairness,
    formats,
    language,
    private,
    secrets,
    size,
)  # fmt: skip
from distributed_ft.data.audit.rows import Basics, Rows, Table, basics
from distributed_ft.data.examples import Example
from distributed_ft.data.findings import Finding, Severity
from distributed_ft.data.pool import counted, in_order
from distributed_ft.data.similar import Signatures
from distributed_ft.errors import ConfigError

# Reads and parses one chunk of a file; called in whichever process is free.
Load = Callable[[], list[Example]]

_EDGES = [0, *(round(2 ** (i / 2)) for i in range(4, 41))]  # characters; half a power of two each


@dataclass(frozen=True, slots=True)
class File:
    """A training file, chunk by chunk, in order."""

    path: str  # as it is told; unique among the files of an audit
    rows: Iterable[Load]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the model will be judged by: the validation rows, a test set, an evaluation task, a general suite."""

    name: str
    path: str
    severity_is_error: bool  # not of validation rows: they steer, but the verdict does not rest on them
    rows: Iterable[Load]


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What to look for, as `run.yaml` says; see config.schema.AuditConfig."""

    kind: str | None = None
    near_duplicate: float = 0.8
    ngram: int = 8
    overlap: float = 0.5
    sensitive: str | None = None
    schema: Mapping[str, Any] | None = None

    @staticmethod
    def of(config: AuditConfig, folder: Path) -> "AuditSettings":
        """`folder`: where a relative path of the schema begins. Raises ConfigError when that file is no JSON Schema."""
        schema = None
        if config.json_schema is not None:
            path = folder / config.json_schema
            try:
                schema = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"data.audit.schema: {path}: {error}; give a JSON Schema file") from error
            problem = formats.schema_problem(schema)
            if problem:
                raise ConfigError(f"data.audit.schema: {path}: not a JSON Schema: {problem}; correct it")
        return AuditSettings(config.kind, config.near_duplicate, config.ngram, config.overlap, config.sensitive, schema)


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, and by file what a report plots of it (JSON-able)."""

    findings: list[Finding]
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What all checks keep of a chunk."""

    basics: Basics
    signatures: Signatures
    matches: contamination.Matches
    formats: formats.Formats
    answers: answers.Answers
    characters: characters.Characters
    languages: language.Languages
    balance: balance.Balance
    private: private.Private
    secrets: secrets.Secrets
    groups: fairness.Groups


def audit(
    files: Sequence[File],
    references: Sequence[Reference],
    settings: AuditSettings,
    workers: int | None = None,
) -> Audit:
    """Findings and statistics of the files; `workers`: processes, by default one a core where it is worth it.

    Raises what a `Load` raises.
    """
    known = contamination.known([_loaded(r) for r in references], settings.ngram)
    found: list[Finding] = []
    statistics: dict[str, dict[str, Any]] = {}
    for file in files:
        facts = list(_looked(file, known, settings, workers))
        told, statistics[file.path] = judge(file.path, facts, known, settings)
        found += told
    found += size.judge(sum(s["rows"] for s in statistics.values()), settings.kind)
    order = {"error": 0, "warning": 1, "info": 2}
    return Audit(sorted(found, key=lambda f: order[f.severity]), statistics)


def _loaded(reference: Reference) -> contamination.ReferenceRows:
    severity: Severity = "error" if reference.severity_is_error else "warning"
    examples = [example for load in reference.rows for example in load()]
    return contamination.ReferenceRows(reference.name, reference.path, severity, Rows(examples))


def _looked(file: File, known: contamination.Known, settings: AuditSettings, workers: int | None) -> Iterator[Facts]:
    chunks = iter(file.rows)
    first = next(chunks, None)
    if first is None:
        return
    # A chunk alone may be of another mixture than the file: what the first one shares counts in all.
    templates = duplicates.templates(Rows(first()))
    work = partial(look, known=known, settings=settings, templates=templates)
    looked = in_order(work, chain([first], chunks), workers)
    yield from counted(looked, f"audit {Path(file.path).name}", lambda facts: len(facts.basics.lines))


def look(
    load: Load, known: contamination.Known, settings: AuditSettings, templates: frozenset[str] = frozenset()
) -> Facts:
    """All facts of one chunk."""
    rows = Rows(load())
    return Facts(
        basics=basics(rows),
        signatures=duplicates.look(rows, templates),
        matches=contamination.look(rows, known, settings.overlap),
        formats=formats.look(rows, settings.schema),
        answers=answers.look(rows),
        characters=characters.look(rows),
        languages=language.look(rows),
        balance=balance.look(rows),
        private=private.look(rows),
        secrets=secrets.look(rows),
        groups=fairness.look(rows, settings.sensitive),
    )


def judge(
    path: str, facts: Sequence[Facts], known: contamination.Known, settings: AuditSettings
) -> tuple[list[Finding], dict[str, Any]]:
    """The findings about one file, and its statistics."""
    table = Table(path, [f.basics for f in facts])
    forms = formats.together([f.formats for f in facts])
    labels = balance.labels_of(table, [f.balance for f in facts])
    repeated = duplicates.repeated(table, [f.signatures for f in facts], settings.near_duplicate)
    seen, seen_table = contamination.judge(table, [f.matches for f in facts], known)
    foreign, languages = language.judge(table, [f.languages for f in facts])
    unfair, rates = fairness.judge(table, [f.groups for f in facts], labels, settings.sensitive)
    findings = [
        *duplicates.judge(table, repeated, settings.near_duplicate),
        *seen,
        *formats.judge(table, forms),
        *answers.judge(table, [f.answers for f in facts], forms),
        *characters.judge(table, [f.characters for f in facts]),
        *foreign,
        *conflicts.judge(table, forms),
        *balance.judge(table, labels),
        *private.judge(table, [f.private for f in facts]),
        *secrets.judge(table, [f.secrets for f in facts]),
        *unfair,
    ]
    return findings, {
        "rows": table.size,
        "lengths": _lengths(table),
        "categories": dict(table.categories.most_common()),
        "labels": _counts(labels),
        "forms": _forms(forms),
        "duplicates": duplicates.statistics(table, repeated),
        "contamination": seen_table,
        "diversity": balance.diversity(table, [f.balance for f in facts]),
        "languages": languages,
        "fairness": rates,
    }


def _lengths(table: Table) -> dict[str, Any]:
    """Histograms over bins of characters, `edges[i]` to `edges[i + 1]`."""
    longest = max(int(table.prompt_lengths.max(initial=0)), int(table.answer_lengths.max(initial=0)))
    edges = _EDGES[: int(np.searchsorted(_EDGES, longest, side="right")) + 1]
    told: dict[str, Any] = {"edges": edges}
    for name, lengths in (("prompt", table.prompt_lengths), ("answer", table.answer_lengths)):
        told[name] = np.histogram(lengths, edges)[0].tolist()
        told[f"median_{name}"] = float(np.median(lengths)) if table.size else None
    return told


def _counts(labels: balance.Labels) -> dict[str, dict[str, int]]:
    return {
        name: dict(Counter({v: int((codes == i).sum()) for i, v in enumerate(values)}).most_common())
        for name, (values, codes) in labels.fields.items()
    }


def _forms(forms: formats.Forms) -> dict[str, int]:
    counts = np.bincount(forms.codes, minlength=len(forms.names))
    return dict(Counter({name: int(n) for name, n in zip(forms.names, counts, strict=True)}).most_common())
