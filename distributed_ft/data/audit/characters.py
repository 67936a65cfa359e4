"""Text that was damaged on its way: decoded by the wrong table, or with characters that are none.

A model learns to write what it is shown. Looked for in all turns of a row, over a whole chunk at once.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distributed_ft.data.audit.rows import Rows, Table
from distributed_ft.data.findings import Finding

# What UTF-8 looks like when it is decoded as Windows-1252 or Latin-1: a lead byte as a letter, then the continuation.
# (é as Ã©, ’ as â€™, ° as Â°, emoji as ðŸ.)
_REST = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2026\u2030\u2039\u203a"
_REST += "\u20ac\u2122"
_MISREAD = re.compile(f"[\u00c2-\u00df][{_REST}]|[\u00e0-\u00ef][{_REST}]{{2}}|[\u00f0-\u00f4][{_REST}]{{3}}")
_FAULTY = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeff\ufffe\uffff]")
_SUSPECT = f"{_FAULTY.pattern}|{_MISREAD.pattern}"  # RE2 reads them as `re` does
_NAMES = {"\ufffd": "the replacement character U+FFFD", "\ufeff": "a byte order mark inside the text"}


@dataclass(frozen=True, slots=True)
class Characters:
    """Of a chunk: by row what is wrong."""

    faults: dict[int, str]


def look(rows: Rows) -> Characters:
    return Characters({row: fault for row in rows.holding(_SUSPECT) if (fault := _fault(rows.texts[row]))})


def _fault(text: str) -> str:
    if faulty := _FAULTY.search(text):
        return _NAMES.get(faulty[0], "control characters")
    for found in _MISREAD.finditer(text):
        if original := _decoded(found[0]):
            return f"UTF-8 read as Latin-1 ({found[0]} for {original})"
    return ""


def _decoded(text: str) -> str:
    """What the characters were, if they were UTF-8; nothing: they are what they seem."""
    try:
        data = b"".join(bytes([ord(c)]) if ord(c) < 256 else c.encode("cp1252") for c in text)
        return data.decode("utf-8")
    except UnicodeError:
        return ""


def judge(table: Table, looked: Sequence[Characters]) -> list[Finding]:
    offsets = np.cumsum([0, *(len(c.lines) for c in table.chunks)])
    faults = {
        int(o) + row: fault for facts, o in zip(looked, offsets, strict=False) for row, fault in facts.faults.items()
    }
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in Counter(faults.values()).most_common(4))
    return table.finding(
        "encoding",
        faults,
        f"damaged text: {kinds}; the model learns to write it; read the source again in its true encoding, or remove "
        "the rows",
    )
