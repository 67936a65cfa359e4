"""Data files of every kind as examples, streamed: in chunks for many cores, or one by one.

A row that is wrong stops the reading: a fine-tune on what was left after silent skipping is not the one asked for.
Who skips says how many rows, and gets each of them as a `BadRow`.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from distributed_ft.artifacts import write_atomic
from distributed_ft.config.data_files import files_of, is_hub_id, kind_of, looks_like_hub_id
from distributed_ft.config.schema import ColumnName, DataFile, DataFormat, TaskConfig
from distributed_ft.data.examples import TEXT, Example
from distributed_ft.data.files import Fault, Item, Row, csv_items, jsonl_items, parse_line, shorten, suggestion
from distributed_ft.data.json_list import json_items
from distributed_ft.data.sources import NAMES, Layout, example_of, layout_of
from distributed_ft.data.tables import hub_items, table_items
from distributed_ft.errors import DataError

_MOST_BYTES = 8 * 2**20  # in a chunk, about; of one long row more
_FORMAT_NAMES = {
    "jsonl": "JSON Lines",
    "json": "JSON",
    "csv": "CSV",
    "tsv": "TSV",
    "parquet": "Parquet",
    "arrow": "Arrow",
}


@dataclass(frozen=True)
class Reading:
    """What is to be read, and how it is to be understood. Raises DataError for columns that mean nothing."""

    path: str  # a file, a folder of files, or the hub's `owner/name`
    format: DataFormat = "auto"
    columns: Mapping[ColumnName, str] = field(default_factory=dict)  # our name -> that of a column in the file
    split: str | None = None  # of a folder or data set; None: train
    keep: tuple[str, ...] = ()  # further columns that go into Example.columns, as text
    of_task: bool = False  # see Layout
    unanswered: bool = False
    hub: bool | None = None  # it is a data set on the hub: there are no files; None: told by what is here

    def __post_init__(self) -> None:
        expected = get_args(ColumnName)
        for name in self.columns:
            if name not in expected:
                raise DataError(
                    f"{self.path}: columns: {name!r} is no name to map to{suggestion((name,), expected)}; "
                    f"write {{prompt: …, completion: …}}, out of {', '.join(expected)}"
                )
        if self.format == "columns" and not self.columns:
            raise DataError(f"{self.path}: format: columns, but no columns are given; write columns: {{prompt: …, …}}")

    @property
    def on_hub(self) -> bool:
        """Whether it is a data set on the hub: there are no files."""
        return is_hub_id(str(self.path), Path()) if self.hub is None else self.hub

    @staticmethod
    def of(file: DataFile, keep: tuple[str, ...] = ()) -> "Reading":
        """As a run.yaml says. Its paths are absolute by now, so what looks like one of the hub is one, whatever folders
        are where the command was given."""
        hub = looks_like_hub_id(file.path) and not os.path.exists(file.path)
        reading = Reading(file.path, file.format, file.columns, file.split, keep, hub=hub)
        if isinstance(file, TaskConfig):
            keep = tuple(dict.fromkeys((*keep, *file.columns_read)))
            return replace(reading, keep=keep, of_task=True, unanswered=file.unanswered)
        return reading

    def layout(self, row: Row) -> Layout:
        """How rows are to be understood, as one of them tells. Raises DataError."""
        told = layout_of(row, self.format, self.columns, self.keep)
        return replace(told, of_task=self.of_task, unanswered=self.unanswered)

    def files(self) -> list[Path]:
        """What is read, in that order; nothing for a data set on the hub. Raises DataError when there is nothing."""
        return [] if self.on_hub else files_of(Path(self.path), self.split)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    path: str
    line: int
    reason: str  # what, the value; the remedy
    raw: str  # as it stands in the file; cut when it is longer than a row may be

    def error(self) -> DataError:
        """The error that stops the reading."""
        return DataError(f"{self.path}:{self.line}: {self.reason}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring rows of a file, not parsed yet; may be sent to another process."""

    path: str
    stem: str  # the ids of rows without one begin with it
    items: list[Item]
    reading: Reading
    layout: Layout | None  # None: no row so far could be understood

    def parse(self, tolerant: bool) -> tuple[list[Example], list[BadRow]]:
        """The rows in their order. Raises DataError at the first fault unless `tolerant`.

        Ids are those of the rows, and not unique yet: see `distinct`.
        """
        examples: list[Example] = []
        bad: list[BadRow] = []
        for result in self.results():
            if isinstance(result, Example):
                examples.append(result)
            elif tolerant:
                bad.append(result)
            else:
                raise result.error()
        return examples, bad

    def results(self) -> Iterator[Example | BadRow]:
        """One for each row."""
        for line, value in self.items:
            try:
                row = _row(self.path, line, value)
                layout = self.layout or self.reading.layout(row)
                yield example_of(row, layout, self.stem)
            except DataError as error:
                reason = str(error).removeprefix(f"{self.path}:{line}: ")
                yield BadRow(self.path, line, reason, _raw(value))
            except RecursionError:
                reason = "a value is nested too deeply to be read; flatten it, or remove the row"
                yield BadRow(self.path, line, reason, _raw(value))


def chunks(reading: Reading, rows: int = 1000) -> Iterator[Chunk]:
    """The whole of it, `rows` at a time (fewer where rows are long), in order, with memory for about one chunk.

    Raises DataError for what is wrong with a file rather than a row of it, also when there is no row at all.
    """
    layout: Layout | None = None
    found = False
    for path, stem, items in _parts(reading):
        for batch in _batches(items, rows):
            found = True
            layout = layout or _layout(reading, path, batch)
            yield Chunk(path, stem, batch, reading, layout)
    if not found:
        raise DataError(f"{reading.path}: empty: there are no rows in it; give it at least one example")


def read(reading: Reading, skip_bad: int = 0, bad: list[BadRow] | None = None) -> Iterator[Example]:
    """The rows in order, with unique ids; `bad` gets those that were skipped, and must be given to skip any.

    Raises DataError at the first fault beyond `skip_bad`.
    """
    assert bad is not None or not skip_bad, "no row is skipped unseen"
    return distinct(_read(reading, skip_bad, [] if bad is None else bad))


def _read(reading: Reading, skip_bad: int, bad: list[BadRow]) -> Iterator[Example]:
    for chunk in chunks(reading):
        for result in chunk.results():
            if isinstance(result, Example):
                yield result
            else:
                bad.append(result)
                refuse_more(bad, skip_bad)


def refuse_more(bad: Sequence[BadRow], skip_bad: int) -> None:
    """Raises DataError when more rows are bad than may be skipped."""
    if not bad or len(bad) <= skip_bad:
        return
    if skip_bad == 0:
        raise bad[0].error()
    last = bad[-1]
    raise DataError(
        f"{last.path}:{last.line}: {len(bad)} rows cannot be read, more than data.skip_bad ({skip_bad}) lets pass; "
        f"the first is {bad[0].path}:{bad[0].line}: {bad[0].reason}"
    )


def quarantine(path: Path, rows: Sequence[BadRow]) -> None:
    """Write rows that were skipped as JSON Lines of {path, line, reason, raw}."""
    write_atomic(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def distinct(examples: Iterable[Example]) -> Iterator[Example]:
    """The rows of one reading with ids that are unique in it: a later row of the same id gets `@<line>` behind it,
    the k-th row without one in a line `#<k>`.

    Memory grows with the rows that have an id of their own, by the length of the ids.
    """
    seen: set[str] = set()
    path, prefix, line, before = "", "", 0, 0
    for example in examples:
        if example.path != path:
            path, prefix, line = example.path, f"{_stem(example.path)}:", 0
        before = before + 1 if example.line == line else 0  # rows in the same line: a JSON list may be all in one
        line, name = example.line, example.id
        if name.startswith(prefix) and name[len(prefix) :].isdecimal():
            if name[len(prefix) :] == str(line):  # made from its place, which is its own
                yield replace(example, id=f"{name}#{before + 1}") if before else example
                continue
            name = f"{name}@{line}"  # the place of another row
        while name in seen:
            name = f"{name}@{line}"
        seen.add(name)
        yield example if name == example.id else replace(example, id=name)


def _stem(path: str) -> str:
    """What the ids of rows without one begin with."""
    try:
        return kind_of(Path(path)).stem
    except DataError:  # of the hub
        return Path(path).name


def read_examples(file: Reading | str | Path, text: bool = False) -> list[Example]:
    """All rows of a data file that can be asked: none without a question or (unless the reading lets it lack) an
    answer, and plain text only where `text` is welcome. Raises DataError."""
    reading = file if isinstance(file, Reading) else Reading(str(file))
    examples = []
    for example in read(reading):
        _check_askable(example, text, reading.unanswered)
        examples.append(example)
    return examples


def _check_askable(example: Example, text: bool, unanswered: bool) -> None:
    place = f"{example.path}:{example.line}"
    asked = example.messages[:-1] if unanswered else example.messages
    for number, message in enumerate(asked):
        if message.role == TEXT and text and message.content.strip():
            continue
        if message.role == TEXT and text:
            raise DataError(f"{place}: an empty text; write one, or remove the row")
        if message.role == TEXT:
            raise DataError(f"{place}: plain text has no question and no answer; give rows of 'prompt', 'completion'")
        if message.role in ("assistant", "user") and not message.content.strip() and not message.extras:
            what = "answer" if message.role == "assistant" else "question"
            raise DataError(
                f"{place}: empty {what}: messages[{number}] ({message.role}) is {shorten(message.content)}; "
                f"write the {what}, or remove the row"
            )


def describe(reading: Reading) -> str:
    """What was detected, for people: `JSON Lines (.gz), chat rows ('messages'), columns 'id', 'messages'`.

    Raises DataError as reading does.
    """
    first = next(chunks(reading, rows=100))
    files = reading.files()
    if files:
        kind = kind_of(files[0])
        form = _FORMAT_NAMES[kind.format] + (f" ({kind.packing})" if kind.packing else "")
        form += f" in {len(files)} files" if len(files) > 1 else ""
    else:
        form = f"data set on the hub, split {reading.split or 'train'}"
    rows = list(_rows(first.path, first.items))
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    shape = NAMES[first.layout.shape] if first.layout else "rows of no known shape"
    mapped = "".join(f", {name} from {column!r}" for name, column in reading.columns.items())
    return f"{form}, {shape}{mapped}, columns {', '.join(map(repr, columns[:12]))}{', …' if len(columns) > 12 else ''}"


# --- parts ---------------------------------------------------------------------------------------------------------


def _parts(reading: Reading) -> Iterator[tuple[str, str, Iterator[Item]]]:
    """Path, stem and records of each file."""
    if reading.on_hub:
        name = str(reading.path)
        yield name, _stem(name), hub_items(name, reading.split)
    for path in reading.files():
        kind = kind_of(path)
        match kind.format:
            case "jsonl":
                items = jsonl_items(path, kind)
            case "json":
                items = json_items(path, kind)
            case "csv" | "tsv":
                items = csv_items(path, kind)
            case "parquet" | "arrow":
                items = table_items(path, kind)
        yield str(path), kind.stem, items


def _batches(items: Iterator[Item], rows: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += _size(item[1])
        if len(batch) >= rows or size >= _MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(value: bytes | dict[str, Any] | Fault) -> int:
    """Bytes, about."""
    if isinstance(value, bytes):
        return len(value)
    return sum(len(v) for v in value.values() if isinstance(v, str)) if isinstance(value, dict) else len(value.raw)


def _layout(reading: Reading, path: str, batch: list[Item]) -> Layout | None:
    """As the first row tells that can be understood. Raises DataError for an optional column that no row has."""
    layout = None
    for row in _rows(path, batch):
        try:
            layout = reading.layout(row)
            break
        except DataError:
            continue
    for target in ("system", "context", "id", "category"):
        column = reading.columns.get(target)
        if column is None or layout is None or any(column in row.values for row in _rows(path, batch)):
            continue
        found = list(dict.fromkeys(name for row in islice(_rows(path, batch), 10) for name in row.values))
        raise DataError(
            f"{path}: columns: {{{target}: {column}}}: no such column (found: {', '.join(map(repr, found[:20]))})"
            f"{suggestion(found, (column,))}; correct the name in data.train"
        )
    return layout


def _rows(path: str, batch: Iterable[Item]) -> Iterator[Row]:
    """Those that are records."""
    for line, value in batch:
        try:
            yield _row(path, line, value)
        except DataError:
            continue


def _row(path: str, line: int, value: bytes | dict[str, Any] | Fault) -> Row:
    if isinstance(value, bytes):
        return Row(path, line, parse_line(path, line, value))
    if isinstance(value, Fault):
        raise DataError(f"{path}:{line}: {value.reason}")
    return Row(path, line, value)


def _raw(value: bytes | dict[str, Any] | Fault) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace").rstrip("\r\n")
    if isinstance(value, Fault):
        return value.raw
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return ""
