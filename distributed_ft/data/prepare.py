"""Reads, renders and tokenises a run's data once, before any process group exists, into a cache keyed by its inputs.

The key covers everything the tokens depend on: the bytes and names of the files, the tokenizer with its template,
`seq_len`, `over_long`, `validation`, and the version of this code. Weights, packing and the seed decide the order,
not the tokens: changing them re-reads nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distributed_ft.artifacts import sha256_of, write_json
from distributed_ft.config.schema import OverLong, RunConfig, Source
from distributed_ft.data.chat import check_tokenizer, render_all
from distributed_ft.data.examples import Example
from distributed_ft.data.order import Order
from distributed_ft.data.reading import read_examples
from distributed_ft.data.report import RowCounts, base_report, with_mixture
from distributed_ft.data.store import (
    PreparedData,
    entry_problem,
    open_entry,
    open_prepared,
    write_manifest,
    write_store,
)
from distributed_ft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

__all__ = ["PreparedData", "open_prepared", "prepare"]

VERSION = 2  # raise it when the same inputs give other tokens or masks than before
_ABANDONED = 24 * 3600  # seconds after which a half-made entry is the leftover of a killed preparation

StoredRow = tuple[str, npt.NDArray[np.int32], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class _Split:
    """The rows of a run; `validation` None: it has none."""

    train: list[list[Example]]  # one list a source
    held_out: list[int]  # rows taken from each source for validation
    validation: list[Example] | None


def prepare(config: RunConfig, tokenizer: "Tokenizer", cache: Path) -> PreparedData:
    """Tokenised data for a run, from the cache if it is there. One process calls it, before ranks exist.

    Raises DataError (file, line, value, remedy) for faults in the data, ConfigError for an unusable tokenizer.
    """
    check_tokenizer(tokenizer)
    sources = _sources(config)
    directory = Path(cache) / _key(config, sources, tokenizer)
    if entry_problem(directory, content=True):
        _build(config, sources, tokenizer, directory)
    weights = tuple(source.weight for source in sources if source.weight is not None) or None
    assert weights is None or len(weights) == len(sources), "the schema lets all sources have a weight, or none"
    prepared = open_entry(directory, weights, None)
    report = with_mixture(prepared.report, Order.of(config, prepared))
    return PreparedData(prepared.train, weights, prepared.validation, report, directory)


def _sources(config: RunConfig) -> list[Source]:
    train = config.data.train
    entries = (train,) if isinstance(train, str) else train
    return [Source(path=entry, weight=None) if isinstance(entry, str) else entry for entry in entries]


# --- the key -------------------------------------------------------------------------------------------------------


def _key(config: RunConfig, sources: Sequence[Source], tokenizer: "Tokenizer") -> str:
    validation = config.data.validation
    inputs = [
        VERSION,
        [_file_identity(source.path) for source in sources],
        _file_identity(validation) if isinstance(validation, str) else validation,
        _tokenizer_identity(tokenizer),
        config.data.seq_len,
        config.data.over_long,
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def _file_identity(path: str) -> list[str]:
    try:
        return [path, sha256_of(Path(path))]  # the path too: it is in messages and, by its stem, in row ids
    except OSError:
        read_examples(path)  # says what is wrong with it
        raise


def _tokenizer_identity(tokenizer: "Tokenizer") -> str:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None  # left behind by the last call, and set anew by the next
    template = tokenizer.chat_template
    text = json.dumps([state, template, sorted(tokenizer.all_special_ids), tokenizer.bos_token, tokenizer.eos_token])
    return hashlib.sha256(text.encode()).hexdigest()


# --- the entry -----------------------------------------------------------------------------------------------------


def _build(config: RunConfig, sources: Sequence[Source], tokenizer: "Tokenizer", directory: Path) -> None:
    """Make the cache entry `directory`: whole, or not at all. Two processes may do so at the same time."""
    split = _split(config, sources)
    partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        partial.mkdir()
        _fill(config, sources, split, tokenizer, partial)
        _publish(partial, directory)
    except OSError as error:
        raise DataError(
            f"{directory.parent}: prepared data cannot be written here ({error.strerror or error}); "
            "free some space, or make the folder writable"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, directory: Path) -> None:
    for path in partial.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    while True:
        try:
            os.rename(partial, directory)
            return
        except OSError:
            if not directory.exists():
                raise
        if entry_problem(directory, content=True) is None:
            return  # another process was faster, with the same content
        damaged = partial.with_name(f"{partial.name}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another process has moved it away
            os.rename(directory, damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    for path in directory.parent.glob(f".{directory.name}.*"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _fill(config: RunConfig, sources: Sequence[Source], split: _Split, tokenizer: "Tokenizer", directory: Path) -> None:
    seq_len, over_long = config.data.seq_len, config.data.over_long
    train_counts, digests = [], {}
    for number, (source, examples) in enumerate(zip(sources, split.train, strict=True)):
        counts = RowCounts(source.path, len(examples) + split.held_out[number], split.held_out[number])
        rows = list(_rows(tokenizer, examples, seq_len, over_long, counts))
        if not rows:
            raise DataError(
                f"{source.path}: all {len(examples)} rows are longer than data.seq_len ({seq_len} tokens) and dropped; "
                "raise data.seq_len, or set data.over_long: truncate"
            )
        digests[f"train-{number}"] = write_store(directory / f"train-{number}", rows)
        train_counts.append(counts)
    if not any(counts.supervised_tokens for counts in train_counts):
        raise DataError(
            f"{', '.join(source.path for source in sources)}: no row has a token of its answer within data.seq_len "
            f"({seq_len} tokens), so there is nothing to learn; raise data.seq_len"
        )
    validation_counts, validation_digest = None, None
    if split.validation is not None:
        path = config.data.validation if isinstance(config.data.validation, str) else "held out of data.train"
        validation_counts = RowCounts(path, rows_in=len(split.validation))
        rows = list(_rows(tokenizer, split.validation, seq_len, over_long, validation_counts))
        if not validation_counts.supervised_tokens:
            raise DataError(
                f"data.validation: {path}: no token of an answer is left within data.seq_len ({seq_len} tokens); "
                "raise data.seq_len"
            )
        validation_digest = write_store(directory / "validation", rows)
    duplicates, leaked = _repeated(split)
    write_json(directory / "report.json", base_report(train_counts, validation_counts, seq_len, duplicates, leaked))
    write_manifest(directory, digests, validation_digest)


def _rows(
    tokenizer: "Tokenizer", examples: Sequence[Example], seq_len: int, over_long: OverLong, counts: RowCounts
) -> Iterator[StoredRow]:
    """The rows as they are stored; fills `counts`."""
    for example, rendered in zip(examples, render_all(tokenizer, examples), strict=True):
        length = len(rendered.ids)
        if length > seq_len:
            if over_long == "error":
                raise DataError(
                    f"{example.path}:{example.line}: the row has {length} tokens, more than data.seq_len ({seq_len}); "
                    "raise data.seq_len, shorten the row, or set data.over_long: truncate | drop"
                )
            if over_long == "drop":
                counts.dropped.append(example.id)
                continue
            counts.truncated.append(example.id)
        tokens = np.asarray(rendered.ids[:seq_len], dtype=np.int32)
        supervised = np.asarray(rendered.supervised[:seq_len], dtype=np.bool_)
        num_supervised = int(supervised[1:].sum())  # the first token is never predicted
        counts.rows_used += 1
        counts.tokens += len(tokens)
        counts.supervised_tokens += num_supervised
        if not num_supervised:
            counts.without_supervised.append(example.id)
        if not rendered.ends:
            counts.without_end.append(example.id)
        if rendered.foreign_specials:
            counts.with_specials.append(example.id)
        yield example.id, tokens, supervised


# --- validation ----------------------------------------------------------------------------------------------------


def _split(config: RunConfig, sources: Sequence[Source]) -> _Split:
    train = [read_examples(source.path) for source in sources]
    validation = config.data.validation
    if validation is None:
        return _Split(train, [0] * len(train), None)
    if isinstance(validation, str):
        return _Split(train, [0] * len(train), read_examples(validation))
    held_out = _held_out(train, validation)
    kept = [[e for e in examples if e.digest not in held_out] for examples in train]
    taken = [e for examples in train for e in examples if e.digest in held_out]
    for source, before, after in zip(sources, train, kept, strict=True):
        if not after:
            raise DataError(
                f"data.validation: holding out {validation:g} leaves no training row of the {len(before)} in "
                f"{source.path}; name a validation file instead, or give more data"
            )
    return _Split(kept, [len(all_rows) - len(rest) for all_rows, rest in zip(train, kept, strict=True)], taken)


def _held_out(train: Sequence[Sequence[Example]], fraction: float) -> set[str]:
    """Digests of the rows to hold out: in the order of the digests until `fraction` of the rows, at least one.

    A pure function of the content, so neither the order of the files nor the seed moves a row, and equal rows stay on
    the same side.
    """
    rows: dict[str, int] = {}
    for examples in train:
        for example in examples:
            rows[example.digest] = rows.get(example.digest, 0) + 1
    wanted = max(1, round(fraction * sum(rows.values())))
    chosen: set[str] = set()
    taken = 0
    for digest in sorted(rows):
        if taken >= wanted:
            break
        chosen.add(digest)
        taken += rows[digest]
    return chosen


def _repeated(split: _Split) -> tuple[list[str], list[str]]:
    """Ids of training rows equal to an earlier one, and of validation rows that are training rows."""
    seen: set[str] = set()
    duplicates = []
    for example in (e for examples in split.train for e in examples):
        if example.digest in seen:
            duplicates.append(example.id)
        seen.add(example.digest)
    return duplicates, [e.id for e in split.validation or [] if e.digest in seen]
