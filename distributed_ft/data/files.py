"""Bytes of a data file into rows with the line where each begins. Knows formats, not conversations."""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ft.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072, less than a long document
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: column -> value, as parsed."""

    path: Path
    line: int  # the file's line where the row begins, counted from 1
    values: dict[str, Any]

    def error(self, what: str, remedy: str) -> DataError:
        """A DataError that names the row."""
        return DataError(f"{self.path}:{self.line}: {what}; {remedy}")


class _DuplicateKeyError(ValueError):
    pass


def shorten(value: Any, length: int = 60) -> str:
    """A value as it may stand in a message: JSON, cut to `length` characters."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= length else text[: length - 1] + "…"


def suggestion(found: Iterable[Any], expected: tuple[str, ...]) -> str:
    """`; did you mean 'x'?` when something found looks like something expected, else nothing."""
    for name in found:
        close = difflib.get_close_matches(str(name).strip().lower(), expected, n=1)
        if close:
            return f"; did you mean {close[0]!r} by {str(name)!r}?"
    return ""


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSONL, JSON, CSV or TSV file, by its extension. Raises DataError at the first fault."""
    suffix = path.suffix.lower()
    if path.is_file() and suffix not in SUFFIXES:
        packed = suffix in (".gz", ".zst", ".bz2", ".xz", ".zip")
        remedy = "unpack it" if packed else "convert it, or name it by its format"
        raise DataError(
            f"{path}: unknown kind of data file, {path.suffix or 'no extension'!r}; {remedy}: {', '.join(SUFFIXES)}"
        )
    text = _read_text(path)
    if suffix == ".json":
        return _json_rows(path, text)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, text, "," if suffix == ".csv" else "\t")
    return _jsonl_rows(path, text)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: this is a directory; name a data file in it ({', '.join(SUFFIXES)})")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; check the path (it is relative to run.yaml)"
        raise DataError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: not UTF-8: byte 0 is 0x{raw[0]:02x}, a UTF-16 mark; save the file as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # with a byte order mark the codec counts from behind it
        at = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") and error.object != raw else 0)
        line = raw.count(b"\n", 0, at) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8: byte {at} of the file is 0x{raw[at]:02x}; "
            "save the file as UTF-8 (iconv -f LATIN1 -t UTF-8 converts a Western one)"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; give it at least one example")
    if "\0" in text:
        at = text.index("\0")
        raise DataError(
            f"{path}:{_line(text, at)}: a NUL byte, which no text has; "
            "the file is damaged or of another kind: restore it, or write it again"
        )
    return text


# --- JSON ----------------------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    lines = text.split("\n")  # not splitlines(): U+2028 and its like may stand inside a JSON string
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            if number == 1 and line.lstrip()[0] == "[":
                raise DataError(
                    f"{path}:1: a JSON list in a JSON Lines file, {shorten(line)}; rename the file to "
                    f"{path.stem}.json, or write one object a line"
                ) from None
            if number == len(lines):  # no newline behind it: this is how a writer that was killed leaves a file
                raise DataError(
                    f"{path}:{number}: the last line is broken or half-written ({error.msg} at column {error.colno}), "
                    f"{shorten(line)}; complete the row, or remove it"
                ) from None
            raise DataError(
                f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}), {shorten(line)}; "
                "write one whole JSON object a line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise _not_json(path, number, error) from None
        yield _row(path, number, value)


def _row(path: Path, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}:{line}: the row is not an object, {shorten(value)}; "
            'write it as {"messages": [...]} or {"instruction": "…", "output": "…"}'
        )
    return Row(path, line, value)


def _not_json(path: Path, line: int, error: Exception) -> DataError:
    if isinstance(error, _DuplicateKeyError):
        return DataError(f"{path}:{line}: the key {str(error)!r} stands twice in one object; keep one of them")
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{path}:{line}: not valid JSON ({error.msg} at column {error.colno}); correct the file there")
    return DataError(f"{path}:{line}: not usable JSON ({error}); correct the file there")


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    at = _skip_space(text, 0)
    if text[at] == "{":
        start = _data_list(path, text, at)
    elif text[at] == "[":
        start = at
    else:
        raise DataError(
            f"{path}:{_line(text, at)}: neither a list nor an object, {shorten(text[at : at + 80])}; "
            'write a list of rows, or {"data": [...]}'
        )
    at = _skip_space(text, start + 1)
    line, counted = _line(text, at), at
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode(path, text, at)
        yield _row(path, line, value)
        at = _skip_space(text, at)
        if at < len(text) and text[at] == ",":
            at = _skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise DataError(f"{path}:{_line(text, at)}: a comma before the closing bracket; remove it")
        elif text[at : at + 1] != "]":
            break
    if text[at : at + 1] != "]":
        raise DataError(
            f"{path}:{_line(text, at)}: not valid JSON: the list of rows is not closed here, "
            f"{shorten(text[at : at + 40])}; the file is half-written, or a comma is missing"
        )
    try:
        json.loads(text)  # what stands around the list
    except (ValueError, RecursionError) as error:
        raise _not_json(path, getattr(error, "lineno", line), error) from None


def _data_list(path: Path, text: str, at: int) -> int:
    """Offset of the `[` of the list under "data" in an object that begins at `at`."""
    begin, found = at, []
    at = _skip_space(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = _decode(path, text, at)
        found.append(key)
        at = _skip_space(text, at)
        if text[at : at + 1] != ":":
            break
        at = _skip_space(text, at + 1)
        if key == "data" and text[at : at + 1] == "[":
            return at
        value, at = _decode(path, text, at)
        if key == "data":
            raise DataError(f'{path}:{_line(text, at)}: "data" is not a list, {shorten(value)}; write a list of rows')
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
    _, end = _decode(path, text, begin)  # broken JSON is reported as such
    if text[_skip_space(text, end) :].startswith("{"):
        raise DataError(f"{path}:{_line(text, end)}: several objects, one a line; rename the file to {path.stem}.jsonl")
    raise DataError(
        f"{path}:{_line(text, begin)}: an object without 'data' (found: {', '.join(map(repr, found)) or 'none'}); "
        'write a list of rows, or {"data": [...]}'
    )


def _decode(path: Path, text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()):
            raise DataError(
                f"{path}:{error.lineno}: the file ends in the middle of a row, it is half-written ({error.msg}); "
                "write it again"
            ) from None
        raise _not_json(path, getattr(error, "lineno", _line(text, at)), error) from None


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


# --- CSV -----------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield from _csv_rows_unlimited(path, text, delimiter)
    finally:
        csv.field_size_limit(limit)


def _csv_rows_unlimited(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1  # of the row to come; a quoted field may hold several lines
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "; a quotation mark is opened here and never closed" if "end of data" in str(error) else ""
            raise DataError(
                f"{path}:{line}: not valid {path.suffix[1:].upper()} ({error}){unclosed}; quote a field that "
                'contains quotation marks, and double them inside: "say ""hello"""'
            ) from None
        if fields and header is None:
            header = _header(path, line, fields, delimiter)
        elif fields and header is not None:
            if len(fields) != len(header):
                raise DataError(
                    f"{path}:{line}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(map(repr, header))}), {shorten(delimiter.join(fields))}; "
                    "fill the row, or quote the field that contains the delimiter"
                )
            yield Row(path, line, dict(zip(header, fields, strict=True)))
        line = reader.line_num + 1


def _header(path: Path, line: int, fields: list[str], delimiter: str) -> list[str]:
    header = [field.strip() for field in fields]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:{line}: the column {twice!r} stands twice in the header; rename one of them")
    other = next((mark for mark in (";", "\t", ",") if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other is not None:
        raise DataError(
            f"{path}:{line}: one column, {shorten(header[0])}, that contains {shorten(other)}; "
            "save a .csv with commas between the fields, or a .tsv with tabs"
        )
    return header
