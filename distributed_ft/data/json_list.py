"""A JSON file, a list of rows or {"data": [...]}, as records with the line where each begins.

The only format that is held in memory whole: write JSON Lines where that is too much.
"""

import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed_ft.config.data_files import Kind
from distributed_ft.data.files import (
    DECODER,
    MOST_BYTES,
    DuplicateKeyError,
    Fault,
    Item,
    not_an_object,
    not_json,
    not_utf8,
    open_binary,
    refuse_utf16,
    shorten,
    unreadable,
)
from distributed_ft.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")


def json_items(path: Path, kind: Kind) -> Iterator[Item]:
    """The rows of the list. Raises DataError where the text is no JSON."""
    text = _read_text(path, kind)
    at = _skip_space(text, 0)
    if at == len(text):
        return
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
        value, at = _row(path, text, at)
        yield line, value
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
        raise DataError(f"{path}:{getattr(error, 'lineno', line)}: {not_json(error)}") from None


def _read_text(path: Path, kind: Kind) -> str:
    try:
        with open_binary(path, kind.packing) as stream:
            raw = stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise unreadable(path, error, 1) from None
    refuse_utf16(path, raw)
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: {not_utf8(error, 'file')}") from None
    if "\0" in text:
        raise DataError(
            f"{path}:{_line(text, text.index(chr(0)))}: a NUL byte, which no text has; "
            "the file is damaged or of another kind: restore it, or write it again"
        )
    return text


def _row(path: Path, text: str, at: int) -> tuple[dict[str, Any] | Fault, int]:
    """The row that begins at `at`, and where it ends."""
    try:
        value, end = DECODER.raw_decode(text, at)
    except DuplicateKeyError as error:
        try:
            _, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as worse:
            raise _broken(path, text, at, worse) from None
        return Fault(not_json(error), text[at:end]), end
    except (ValueError, RecursionError) as error:
        raise _broken(path, text, at, error) from None
    if not isinstance(value, dict):
        return Fault(not_an_object(value), text[at:end]), end
    if end - at > MOST_BYTES:
        reason = f"the row has {(end - at) >> 20} MiB, and at most {MOST_BYTES >> 20} are read; split it"
        return Fault(reason, text[at : at + 1000]), end
    return value, end


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
        return DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise _broken(path, text, at, error) from None


def _broken(path: Path, text: str, at: int, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()):
        return DataError(
            f"{path}:{error.lineno}: the file ends in the middle of a row, it is half-written ({error.msg}); "
            "write it again"
        )
    return DataError(f"{path}:{getattr(error, 'lineno', _line(text, at))}: {not_json(error)}")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
