"""Reads, renders and tokenises a run's data once, before any process group exists, into a cache keyed by its inputs.

The key covers everything the tokens depend on: the bytes and names of the files, the tokenizer with its template,
`seq_len`, `over_long`, `supervise`, `validation`, and the version of this code. Weights, packing and the seed decide
the order, not the tokens: changing them re-reads nothing.

Rows go through in chunks, by all cores (pool.py), so a file may be larger than memory.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_ft.artifacts import sha256_of, write_json
from distributed_ft.config.schema import DataConfig, RunConfig, Source
from distributed_ft.data.chat import Rendered, check_tokenizer, render_all
from distributed_ft.data.examples import Example
from distributed_ft.data.order import Order
from distributed_ft.data.pool import counted, in_order
from distributed_ft.data.reading import BadRow, Chunk, Reading, chunks, quarantine, refuse_more
from distributed_ft.data.report import RowCounts, base_report, with_mixture
from distributed_ft.data.store import (
    QUARANTINE,
    PreparedData,
    Rows,
    StoredRow,
    entry_problem,
    open_entry,
    open_prepared,
    write_manifest,
    write_store,
)
from distributed_ft.data.tables import hub_revision
from distributed_ft.data.template_check import faults, prove
from distributed_ft.data.word_memo import WordMemo
from distributed_ft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

__all__ = ["PreparedData", "open_prepared", "prepare"]

VERSION = 4  # raise it when the same inputs give other tokens or masks than before
_ABANDONED = 24 * 3600  # seconds after which a half-made entry is the leftover of a killed preparation


def prepare(config: RunConfig, tokenizer: "Tokenizer", cache: Path) -> PreparedData:
    """Tokenised data for a run, from the cache if it is there. One process calls it, before ranks exist.

    Raises DataError (file, line, value, remedy) for faults in the data, ConfigError for an unusable tokenizer.
    """
    check_tokenizer(tokenizer, template=False)
    sources = config.data.sources
    directory = Path(cache) / _key(config, sources, tokenizer)
    if entry_problem(directory, content=True):
        _build(config, sources, tokenizer, directory)
    weights = tuple(source.weight for source in sources if source.weight is not None) or None
    assert weights is None or len(weights) == len(sources), "the schema lets all sources have a weight, or none"
    fractions = tuple(source.fraction for source in sources)
    prepared = open_entry(directory, weights, fractions if any(fractions) else None, None)
    proof = prove(tokenizer, tools=any(source["with_tools"] for source in prepared.report["sources"]))
    return replace(prepared, report=with_mixture(prepared.report, Order.of(config, prepared), proof))


# --- the key -------------------------------------------------------------------------------------------------------


def _key(config: RunConfig, sources: Sequence[Source], tokenizer: "Tokenizer") -> str:
    data, validation = config.data, config.data.validation_file
    inputs = [
        VERSION,
        [file_identity(Reading.of(source)) for source in sources],
        data.validation if validation is None else file_identity(Reading.of(validation)),
        _tokenizer_identity(tokenizer),
        data.seq_len,
        data.over_long,
        data.supervise,
        data.skip_bad,
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def file_identity(reading: Reading) -> list[str]:
    """What a cache goes by: content, how it is read, and the path, which is in messages and, by its stem, in ids."""
    how = json.dumps([reading.format, sorted(reading.columns.items()), reading.split])
    if reading.on_hub:
        return [reading.path, hub_revision(reading.path), how]
    try:
        return [reading.path, *(sha256_of(file) for file in reading.files()), how]
    except OSError:
        next(chunks(reading))  # says what is wrong with it
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
    partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        partial.mkdir()
        _fill(config, sources, tokenizer, partial)
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


def _fill(config: RunConfig, sources: Sequence[Source], tokenizer: "Tokenizer", directory: Path) -> None:
    data, seq_len = config.data, config.data.seq_len
    held_out = _held_out(config, sources) if isinstance(data.validation, float) else frozenset[str]()
    memo = WordMemo.of(tokenizer)
    train_counts, digests, bad = [], {}, list[BadRow]()

    def tokenised(readings: Iterable[Reading], counts: RowCounts, take: bool, bad: list[BadRow]) -> Iterator[Rows]:
        """The rows of the files, those that are held out or those that are not; fills `counts` and `bad`."""
        names = _Names()
        work = _Tokenising(tokenizer, data, held_out, take, memo)
        parts = in_order(work, chain.from_iterable(map(chunks, readings)))
        for part in counted(parts, f"tokenise {Path(counts.path).name}", lambda part: part.counts.rows_in):
            counts.add(part.counts)
            bad.extend(part.bad)
            refuse_more(bad, data.skip_bad)
            yield names.made_unique(part)

    for number, source in enumerate(sources):
        counts = RowCounts(source.path)
        rows = tokenised([Reading.of(source)], counts, take=False, bad=bad)
        digests[f"train-{number}"] = _written(directory / f"train-{number}.arrow", rows, counts, data, bad)
        train_counts.append(counts)
    if not any(counts.supervised_tokens for counts in train_counts):
        cut = any("without_supervised" in counts.noted for counts in train_counts)
        raise DataError(
            f"{', '.join(source.path for source in sources)}: "
            + (
                f"no row has a token of its answer within data.seq_len ({seq_len} tokens), so there is nothing to "
                "learn; raise data.seq_len"
                if cut
                else "there is nothing to learn: every answer is empty or has weight 0 (of the last turns only, with "
                "data.supervise: last); give the rows answers"
            )
        )
    validation_counts, validation_digest = None, None
    if data.validation is not None:
        named = data.validation_file
        validation_counts = RowCounts(named.path if named else "held out of data.train")
        readings = map(Reading.of, [named] if named else sources)
        # Rows that are held out are those of data.train, read a second time: what is bad there was counted.
        rows = tokenised(readings, validation_counts, take=not named, bad=bad if named else [])
        validation_digest = _written(directory / "validation.arrow", rows, validation_counts, data, bad)
        if not named:
            validation_counts.rows_in, validation_counts.held_out = validation_counts.held_out, 0
        if not validation_counts.supervised_tokens:
            raise DataError(
                f"data.validation: {validation_counts.path}: no token of an answer is left within data.seq_len "
                f"({seq_len} tokens); raise data.seq_len"
            )
    if bad:
        quarantine(directory / QUARANTINE, bad)
    write_json(directory / "report.json", base_report(train_counts, validation_counts, seq_len, len(bad)))
    write_manifest(directory, digests, validation_digest)


def _written(path: Path, rows: Iterator[Rows], counts: RowCounts, data: DataConfig, bad: Sequence[BadRow]) -> str:
    first = next((some for some in rows if some.ids), None)
    if first is None and not counts.rows_in:
        raise DataError(
            f"{counts.path}: none of its rows can be read, for example {bad[-1].error()} (data.skip_bad lets "
            f"{data.skip_bad} rows pass)"
        )
    if first is None and counts.held_out and counts.held_out == counts.rows_in:
        raise DataError(
            f"data.validation: holding out {data.validation:g} leaves no training row of the {counts.rows_in} in "
            f"{counts.path}; name a validation file instead, or give more data"
        )
    if first is None:
        raise DataError(
            f"{counts.path}: all {counts.rows_in} rows are longer than data.seq_len ({data.seq_len} tokens) and "
            "dropped; raise data.seq_len, or set data.over_long: truncate"
        )
    return write_store(path, chain([first], rows))


# --- a chunk -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokenised:
    """A chunk, done."""

    rows: Rows
    lines: list[int]  # where each row begins in its file
    counts: RowCounts
    bad: list[BadRow]


@dataclass(frozen=True)
class _Tokenising:
    """What is done to a chunk; `take` the rows that are held out, or those that are not."""

    tokenizer: "Tokenizer"
    data: DataConfig
    held_out: frozenset[str]  # what is asked, or said, by hash: see _held_out
    take: bool
    memo: WordMemo | None

    def __call__(self, chunk: Chunk) -> _Tokenised:
        examples, bad = chunk.parse(tolerant=self.data.skip_bad > 0)
        out = [bool(self.held_out) and not self.held_out.isdisjoint(_hashes(example)) for example in examples]
        wanted = [example for example, is_out in zip(examples, out, strict=True) if is_out == self.take]
        counts = RowCounts("", rows_in=len(examples), held_out=sum(out))
        lines: list[int] = []
        rows = Rows.of(self._rows(wanted, counts, lines))
        return _Tokenised(rows, lines, counts, bad)

    def _rendered(self, examples: Sequence[Example]) -> Iterator[Rendered]:
        return render_all(self.tokenizer, examples, self.data.supervise, self.memo)

    def _rows(self, examples: Sequence[Example], counts: RowCounts, lines: list[int]) -> Iterator[StoredRow]:
        """The rows as they are stored; fills `counts` and `lines`."""
        seq_len, over_long = self.data.seq_len, self.data.over_long
        for example, rendered in zip(examples, self._rendered(examples), strict=True):
            length, pieces = len(rendered.ids), 1
            if length > seq_len:
                if over_long == "error":
                    raise DataError(
                        f"{example.path}:{example.line}: the row has {length} tokens, more than data.seq_len "
                        f"({seq_len}); raise data.seq_len, shorten the row, or set data.over_long: truncate | split | "
                        "drop"
                    )
                if over_long == "drop":
                    counts.note("dropped", example.path, [example.line])
                    continue
                pieces = -(-length // seq_len) if over_long == "split" else 1
                counts.note("split" if over_long == "split" else "truncated", example.path, [example.line])
            counts.rows_used += 1
            learned = 0
            for piece in range(pieces):
                part = slice(piece * seq_len, (piece + 1) * seq_len)
                tokens, supervised = rendered.ids[part], rendered.supervised[part]
                learned += sum(supervised[1:])  # the first token of a document is never predicted
                counts.tokens += len(tokens)
                lines.append(example.line)
                yield example.id if pieces == 1 else f"{example.id}#{piece + 1}", tokens, supervised
            counts.supervised_tokens += learned
            if not learned and length > seq_len:
                counts.note("without_supervised", example.path, [example.line])
            counts.with_tools += bool(example.tools)
            for fault in faults(example, rendered):
                counts.note(fault, example.path, [example.line])


@dataclass
class _Names:
    """Ids are the users' own, and may repeat; a batch is told by them, so here they become different."""

    seen: set[str] = field(default_factory=set)

    def made_unique(self, part: _Tokenised) -> Rows:
        names = []
        for name, line in zip(part.rows.ids, part.lines, strict=True):
            while name in self.seen:
                name = f"{name}@{line}"
            self.seen.add(name)
            names.append(name)
        return replace(part.rows, ids=names)


# --- validation ----------------------------------------------------------------------------------------------------


def _held_out(config: RunConfig, sources: Sequence[Source]) -> frozenset[str]:
    """Hashes of the rows to hold out: in the order of the hashes until `data.validation` of the rows, at least one.

    A pure function of the content, so neither the order of the files nor the seed moves a row; and rows that ask the
    same stay on one side, or the loss would be measured on questions that were answered in training. Where more ask it
    than are held out, it is no question but an invitation ("Tell me a joke."): of such rows only equal ones do.
    """
    fraction, tolerant = config.data.validation, config.data.skip_bad > 0
    assert isinstance(fraction, float)
    rows = Counter[tuple[str, str]]()
    for hashes in in_order(_hashes_of(tolerant), chain.from_iterable(chunks(Reading.of(s)) for s in sources)):
        rows.update(hashes)
    wanted = max(1, round(fraction * rows.total()))
    asked = Counter[str]()
    for (question, _), count in rows.items():
        asked[question] += count
    groups = Counter[str]()
    for (question, whole), count in rows.items():
        groups[question if asked[question] <= wanted else whole] += count
    chosen: set[str] = set()
    taken = 0
    for group in sorted(groups):
        if taken >= wanted:
            break
        chosen.add(group)
        taken += groups[group]
    return frozenset(chosen)


def _hashes_of(tolerant: bool) -> Callable[[Chunk], list[tuple[str, str]]]:
    return lambda chunk: [_hashes(example) for example in chunk.parse(tolerant)[0]]


def _hashes(example: Example) -> tuple[str, str]:
    """Of what is asked, without case and white space (of plain text nothing is: of all), and of all."""
    asked, whole = " ".join(example.prompt.casefold().split()), example.digest[:16]
    return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest() if asked else whole, whole
