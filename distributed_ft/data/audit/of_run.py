"""The audit of a run's data: which files, held against which others; kept by what it depends on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import read_json, write_json
from distributed_ft.config.paths import ASSETS, general_name, is_harness_name
from distributed_ft.config.schema import HarnessTask, RunConfig, TaskConfig
from distributed_ft.data.audit.run import AuditSettings, File, Load, Reference, audit
from distributed_ft.data.prepare import file_identity
from distributed_ft.data.reading import Chunk, Reading, chunks
from distributed_ft.errors import CheckpointError

VERSION = 3  # raise it when the same data gives other findings than before
_SHIPPED_SUITE = str(ASSETS / "general" / "test.jsonl")


def audit_of(config: RunConfig, cache: Path) -> dict[str, Any]:
    """`findings` and `statistics` of a run's training data, as they stand in `data/report.json`; waivers are not asked.

    Raises DataError for a file that cannot be read.
    """
    settings = AuditSettings.of(config.data.audit, Path())
    keep = (settings.sensitive,) if settings.sensitive else ()
    files = [Reading.of(source, keep) for source in config.data.sources]
    references = _references(config)
    told = [VERSION, asdict(settings), config.data.skip_bad, [[f.path, list(f.keep), *file_identity(f)] for f in files]]
    told.append([[name, error, *file_identity(reading)] for name, reading, error in references])
    stored = cache / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.json"
    with suppress(CheckpointError):
        kept = read_json(stored)
        if isinstance(kept, dict) and kept.keys() == {"findings", "statistics"}:
            return kept
    tolerant = config.data.skip_bad > 0
    result = audit(
        [File(name, rows_of(file, tolerant)) for name, file in zip(_names(files), files, strict=True)],
        [Reference(name, reading.path, error, rows_of(reading, tolerant)) for name, reading, error in references],
        settings,
    )
    found: dict[str, Any] = {
        "findings": [asdict(finding) for finding in result.findings],
        "statistics": result.statistics,
    }
    write_json(stored, found)
    return found


def _names(files: Sequence[Reading]) -> list[str]:
    """By what each source is told, all different: its path, its split, and which time it is named."""
    names: list[str] = []
    for file in files:
        name = f"{file.path} ({file.split})" if file.split else file.path
        times = sum(other.path == file.path and other.split == file.split for other in files[: len(names)])
        names.append(f"{name} ({times + 1})" if times else name)
    return names


def rows_of(reading: Reading, tolerant: bool) -> Iterator[Load]:
    """The file in parts that any process can parse."""
    return (partial(_examples, chunk, tolerant) for chunk in chunks(reading))


def _examples(chunk: Chunk, tolerant: bool) -> list[Any]:
    return chunk.parse(tolerant)[0]


def _references(config: RunConfig) -> list[tuple[str, Reading, bool]]:
    """Name, file, and whether a training row of it makes a score wrong: of data.validation only the loss is."""
    suites = [(general_name(suite), _suite(suite)) for suite in config.evaluation.general if _has_rows(suite)]
    with_rows = [task for task in config.evaluation.tasks if isinstance(task, TaskConfig)]
    tasks = [(task.name, Reading.of(task)) for task in with_rows]
    apart = [(f"{task.name}.validation", task.on_validation) for task in with_rows]
    tasks += [(name, Reading.of(rows)) for name, rows in apart if rows is not None]  # a fraction is among its rows
    found = [(name, reading, True) for name, reading in [*tasks, *suites]]
    validation = config.data.validation_file
    judged_on = [(reading.path, reading.split) for _, reading, _ in found]
    if validation is not None and (validation.path, validation.split) not in judged_on:
        found.append(("validation", Reading.of(validation), False))
    return found


def _has_rows(entry: str | TaskConfig | HarnessTask) -> bool:
    """Of the documents of lm-evaluation-harness only it knows."""
    return isinstance(entry, TaskConfig) or (isinstance(entry, str) and not is_harness_name(entry))


def _suite(entry: str | TaskConfig | HarnessTask) -> Reading:
    if isinstance(entry, TaskConfig):
        return Reading.of(entry)
    assert isinstance(entry, str)
    return Reading(_SHIPPED_SUITE if entry == "shipped" else entry)
