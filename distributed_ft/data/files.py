"""Bytes of JSON Lines, CSV and TSV files, packed or not, as records with the line where each begins; streamed.

Knows formats, not conversations. What is wrong with one record is a `Fault` in its place; what is wrong with the file
from some line on (another encoding, cut off inside gzip) is a DataError.
"""

import bz2
import csv
import difflib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from distributed_ft.config.data_files import Kind
from distributed_ft.errors import DataError, brief

MOST_BYTES = 16 * 2**20  # of one row
_PIECE = 2**20  # bytes read at once of what is passed over
_LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072, less than a long document
_SHOWN = 1000  # characters kept of a row that is too long
_UTF8 = "save the file as UTF-8"
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: column -> value, as parsed."""

    path: str
    line: int  # the file's line where the row begins, counted from 1; in Parquet and Arrow the row
    values: dict[str, Any]

    def error(self, what: str, remedy: str) -> DataError:
        """A DataError that names the row."""
        return DataError(f"{self.path}:{self.line}: {what}; {remedy}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that cannot be one."""

    reason: str  # what, the value; the remedy
    raw: str  # the record, as far as it can be shown


Item = tuple[int, bytes | dict[str, Any] | Fault]  # the line where it begins, and a line of JSON, a record or a fault


class DuplicateKeyError(ValueError):
    """A key that stands twice in one JSON object."""


def shorten(value: Any, length: int = 60) -> str:
    """A value as it may stand in a message: JSON, cut to `length` characters."""
    try:
        text = json.dumps(value[: 2 * length] if isinstance(value, str) else value, ensure_ascii=True, default=repr)
    except RecursionError:
        return "…"
    return text if len(text) <= length else text[: length - 1] + "…"


def suggestion(found: Iterable[Any], expected: tuple[str, ...]) -> str:
    """`; did you mean 'x'?` when something found looks like something expected, else nothing."""
    for name in found:
        close = difflib.get_close_matches(str(name).strip().lower(), expected, n=1)
        if close:
            return f"; did you mean {close[0]!r} by {str(name)!r}?"
    return ""


# --- lines ---------------------------------------------------------------------------------------------------------


def lines_of(path: Path, packing: str | None) -> Iterator[tuple[int, bytes | Fault]]:
    """Number and bytes of each line with its line break; at most MOST_BYTES of it are ever held.

    Raises DataError when the file cannot be read to its end, or is UTF-16.
    """
    number = 0
    try:
        with open_binary(path, packing) as stream:
            while line := stream.readline(MOST_BYTES + 1):
                number += 1
                if number == 1:
                    refuse_utf16(path, line)
                    line = line.removeprefix(_MARK)
                if len(line) > MOST_BYTES:
                    yield number, _too_long(line[:_SHOWN], len(line) + _pass_over(stream, line))
                else:
                    yield number, line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise unreadable(path, error, number + 1) from None


def open_binary(path: Path, packing: str | None) -> BinaryIO:
    """The file's content, unpacked on the way."""
    match packing:
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case ".zst":
            import pyarrow

            return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")))
        case _:
            return path.open("rb")


def unreadable(path: Path, error: Exception, line: int) -> DataError:
    """What to say of a file that ends in an error at that line."""
    if isinstance(error, OSError) and error.errno:
        return DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")
    return DataError(
        f"{path}:{line}: the packed file is cut off or damaged from here on ({brief(error)}); copy or download it again"
    )


def refuse_utf16(path: Path, beginning: bytes) -> None:
    """Raises DataError if a file begins like UTF-16."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: not UTF-8: byte 0 is 0x{beginning[0]:02x}, a UTF-16 mark; {_UTF8}")


def not_utf8(error: UnicodeDecodeError, whole: str) -> str:
    """The reason of a Fault; `whole`: what the byte is counted in."""
    byte = error.object[error.start]
    return (
        f"not UTF-8: byte {error.start} of the {whole} is 0x{byte:02x}; "
        f"{_UTF8} (iconv -f LATIN1 -t UTF-8 converts a Western one)"
    )


def _pass_over(stream: BinaryIO, line: bytes) -> int:
    """Bytes from here to the end of the line, which is where the stream then is."""
    passed = 0
    while line and not line.endswith(b"\n"):
        line = stream.readline(_PIECE)
        passed += len(line)
    return passed


def _too_long(beginning: bytes, length: int) -> Fault:
    shown = beginning.decode(errors="backslashreplace")
    return Fault(
        f"the row has {length / 2**20:.0f} MiB, and at most {MOST_BYTES >> 20} are read, {shorten(shown)}; "
        "split it into several rows, or write one row a line",
        shown,
    )


# --- JSON Lines ----------------------------------------------------------------------------------------------------


def jsonl_items(path: Path, kind: Kind) -> Iterator[Item]:
    """The lines that are not blank, not parsed yet."""
    for number, line in lines_of(path, kind.packing):
        if isinstance(line, Fault) or (line and not line.isspace()):
            yield number, line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object)  # refuses duplicate keys


def parse_line(path: str, number: int, line: bytes) -> dict[str, Any]:
    """The object that a line of JSON is. Raises DataError."""
    try:
        value = DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: {_line_fault(path, number, line, error)}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: {not_an_object(value)}")
    return value


def _line_fault(path: str, number: int, line: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(error, "line")
    if b"\0" in line:
        return (
            f"a NUL byte, which no text has, {shorten(line.decode().strip())}; "
            "the file is damaged or of another kind: restore it, or write it again"
        )
    if not isinstance(error, json.JSONDecodeError):
        return not_json(error)
    where, shown = f"{error.msg} at column {error.colno}", shorten(line.decode().strip())
    if number == 1 and line.lstrip().startswith(b"["):
        return (
            f"a JSON list in a JSON Lines file, {shown}; rename the file to {Path(path).stem}.json, "
            "or write one object a line"
        )
    if not line.endswith(b"\n"):  # this is how a writer that was killed leaves a file
        return f"the last line is broken or half-written ({where}), {shown}; complete the row, or remove it"
    return f"not valid JSON ({where}), {shown}; write one whole JSON object a line"


def not_an_object(value: Any) -> str:
    """The reason of a Fault."""
    return (
        f"the row is not an object, {shorten(value)}; "
        'write it as {"messages": [...]} or {"instruction": "…", "output": "…"}'
    )


def not_json(error: Exception) -> str:
    """The reason of a Fault, of what the decoder raised."""
    if isinstance(error, DuplicateKeyError):
        return f"the key {str(error)!r} stands twice in one object; keep one of them"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno}); correct the file there"
    return f"not usable JSON ({error}); correct the file there"


# --- CSV -----------------------------------------------------------------------------------------------------------


class _TooLongError(Exception):
    """Raised through the csv reader by the lines it reads."""


class _Record(Iterator[str]):
    """The lines that a csv reader takes for its next record, remembered until `begin`."""

    def __init__(self, lines: Iterator[tuple[int, bytes | Fault]]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """The next line is the first of a record."""
        self.line = 0  # of the file, where the record begins
        self.raw: list[str] = []
        self.size = 0  # bytes
        self.fault: Fault | None = None

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.line = self.line or number
        if isinstance(line, Fault):
            self.fault = line
            raise _TooLongError
        self.size += len(line)
        if self.size > MOST_BYTES:
            raise _TooLongError
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            text = line.decode(errors="backslashreplace")
            self.fault = Fault(not_utf8(error, "line"), text)
        self.raw.append(text)
        return text


def csv_items(path: Path, kind: Kind) -> Iterator[Item]:
    """The records behind the header. Raises DataError where a quotation mark leaves open which lines are a record."""
    delimiter = "," if kind.format == "csv" else "\t"
    record = _Record(lines_of(path, kind.packing))
    reader = csv.reader(record, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        record.begin()
        try:
            fields = _fields(reader)
        except _TooLongError:
            if record.fault is None:
                raise DataError(
                    f"{path}:{record.line}: a quotation mark is opened in this row and not closed within "
                    f"{MOST_BYTES >> 20} MiB; close it, or double it inside a quoted field"
                ) from None
            fields = []
        except csv.Error as error:
            fields = []
            if "end of data" in str(error):
                raise DataError(f"{path}:{record.line}: {_not_csv(kind, error, open_quote=True)}") from None
            record.fault = record.fault or Fault(_not_csv(kind, error), "".join(record.raw))
        if fields is None:
            return
        if record.fault is not None:
            if header is None:
                raise DataError(f"{path}:{record.line}: {record.fault.reason}")
            yield record.line, record.fault
        elif header is None and fields:
            header = _header(path, record.line, fields, delimiter)
        elif header is not None and fields:
            yield record.line, _values(header, fields, delimiter, record.raw)


def _fields(reader: Iterator[list[str]]) -> list[str] | None:
    """The next record of a csv reader, however long; None: there is no more."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _values(header: list[str], fields: list[str], delimiter: str, raw: list[str]) -> dict[str, Any] | Fault:
    if len(fields) == len(header):
        return dict(zip(header, fields, strict=True))
    return Fault(
        f"{len(fields)} fields, but the header has {len(header)} ({', '.join(map(repr, header))}), "
        f"{shorten(delimiter.join(fields))}; fill the row, or quote the field that contains the delimiter",
        "".join(raw),
    )


def _not_csv(kind: Kind, error: Exception, open_quote: bool = False) -> str:
    unclosed = "; a quotation mark is opened here and never closed" if open_quote else ""
    return (
        f"not valid {kind.format.upper()} ({error}){unclosed}; quote a field that "
        'contains quotation marks, and double them inside: "say ""hello"""'
    )


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
