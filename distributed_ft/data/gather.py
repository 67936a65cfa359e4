"""Raw rows, read once: cleaned into a file of finished lines, and of each what splitting needs to know, in arrays.

Memory is about 80 bytes a row, whatever the rows hold: a million need not fit as texts.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from distributed_ft.data.cleaning import clean_messages, unfit
from distributed_ft.data.examples import TEXT, Example, Message, digest_of
from distributed_ft.data.reading import BadRow, Reading, chunks, refuse_more
from distributed_ft.data.similar import Labels
from distributed_ft.data.splitting import Hashes

Tell = Callable[[str, int], None]  # what is being done, and how many rows of it are done
_TELL_EVERY = 2000  # rows
_LINES_SHOWN = 20  # of the rows that a kind of cleaning changed


@dataclass
class Change:
    """How often a kind of cleaning was needed."""

    rows: int = 0
    changes: int = 0
    lines: list[str] = field(default_factory=list)  # `path:line` of the first 20 rows


@dataclass
class Gathered:
    """Row i of the kept ones is line i of `lines.jsonl` (as it will be written) and of `texts` (to be compared)."""

    ids: "array[int]" = field(default_factory=lambda: array("Q"))  # of the content
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))  # hash; 0: none
    keys: "array[int]" = field(default_factory=lambda: array("Q"))  # hash; 0: none
    readings: "array[int]" = field(default_factory=lambda: array("H"))
    files: "array[int]" = field(default_factory=lambda: array("L"))  # into `paths`
    lines: "array[int]" = field(default_factory=lambda: array("Q"))
    categories: "array[int]" = field(default_factory=lambda: array("l"))  # into `category_names`; -1: none
    questions: "array[int]" = field(default_factory=lambda: array("L"))  # characters
    answers: "array[int]" = field(default_factory=lambda: array("L"))  # characters
    paths: dict[str, int] = field(default_factory=dict)
    category_names: dict[str, int] = field(default_factory=dict)
    rows_read: list[int] = field(default_factory=list)  # of each reading
    removed: Counter[str] = field(default_factory=Counter)
    cleaned: dict[str, Change] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)  # those that were to be kept, and that some row has
    first: dict[str, str] = field(default_factory=dict)  # `path:line` of the first text, and of the first conversation

    def hashes(self, name: str) -> Hashes:
        """`ids`, `prompts` or `keys`, uint64 [n]."""
        return np.array(getattr(self, name), np.uint64)

    def numbers(self, name: str) -> Labels:
        """Any other column, int64 [n]."""
        return np.array(getattr(self, name), np.int64)

    def place(self, row: int) -> str:
        """`path:line`."""
        return f"{list(self.paths)[self.files[row]]}:{self.lines[row]}"


def gather(
    readings: Sequence[Reading],
    folder: Path,
    *,
    group_by: str | None,
    category: str | None,
    min_answer: int,
    skip_bad: int,
    tell: Tell,
) -> Gathered:
    """Read all rows; write `lines.jsonl`, `texts` and `removed.jsonl` into `folder`. Raises DataError."""
    found = Gathered(rows_read=[0] * len(readings))
    with (
        (folder / "lines.jsonl").open("wb") as lines,
        (folder / "texts").open("wb") as texts,
        (folder / "removed.jsonl").open("w", encoding="utf-8") as removed,
    ):
        for count, (number, row) in enumerate(_rows(readings, skip_bad)):
            if count % _TELL_EVERY == 0:
                tell("reading", count)
            found.rows_read[number] += 1
            if isinstance(row, BadRow):
                remove(removed, row.path, row.line, "unreadable", why=row.reason, raw=row.raw)
                found.removed["unreadable"] += 1
                continue
            messages, changes = clean_messages(row.messages)
            reason = unfit(messages, min_answer)
            if reason is not None:
                remove(removed, row.path, row.line, reason.partition(":")[0], why=reason)
                found.removed[reason.partition(":")[0]] += 1
                continue
            if changes:
                _count(found.cleaned, changes, row)
            changed = any(a is not b for a, b in zip(messages, row.messages, strict=True))
            digest = digest_of(messages, row.tools) if changed else row.digest
            label = row.group if category is None else row.columns.get(category)
            _note(found, number, row, messages, digest, label, row.columns.get(group_by) if group_by else None)
            lines.write(finished(row, messages, digest[:16], label))
            texts.write(compared(messages).encode() + b"\n")
    return found


def _rows(readings: Sequence[Reading], skip_bad: int) -> Iterator[tuple[int, Example | BadRow]]:
    """Each row with the number of its reading. Raises DataError at the first fault beyond `skip_bad`."""
    bad: list[BadRow] = []
    for number, reading in enumerate(readings):
        for chunk in chunks(reading):
            for row in chunk.results():
                if isinstance(row, BadRow):
                    bad.append(row)
                    refuse_more(bad, skip_bad)
                yield number, row


def remove(file: IO[str], path: str, line: int, reason: str, **more: str) -> None:
    """One line of `removed.jsonl`."""
    file.write(json.dumps({"path": path, "line": line, "reason": reason, **more}, ensure_ascii=False) + "\n")


def compared(messages: Sequence[Message]) -> str:
    """The text by which rows are near-duplicates, on one line: what is asked and answered, not how it is set up."""
    return " ".join(m.content.replace("\n", " ") for m in messages if m.role not in ("system", "tool"))


def finished(row: Example, messages: Sequence[Message], name: str, category: str | None) -> bytes:
    """The row as it is written: `id`, `messages` (or `text`), tools, category and the columns that were kept."""
    value: dict[str, Any] = {"id": name}
    if messages[0].role == TEXT:
        value["text"] = messages[0].content
    else:
        value["messages"] = [message.as_written() for message in messages]
    if row.tools:
        value["tools"] = json.loads(row.tools)
    if category is not None:
        value["category"] = category
    line = json.dumps({**value, **{k: v for k, v in row.columns.items() if k not in value}}, ensure_ascii=False)
    return line.encode() + b"\n"


def _note(
    found: Gathered,
    reading: int,
    row: Example,
    messages: Sequence[Message],
    digest: str,
    category: str | None,
    key: str | None,
) -> None:
    prompt = "\n".join(m.content for m in messages[:-1])
    found.ids.append(int(digest[:16], 16))
    found.prompts.append(_hash("prompt", " ".join(prompt.casefold().split())) if prompt.strip() else 0)
    found.keys.append(_hash("key", key) if key else 0)
    found.columns.update(row.columns)
    found.first.setdefault("text" if messages[0].role == TEXT else "conversation", f"{row.path}:{row.line}")
    found.readings.append(reading)
    found.files.append(found.paths.setdefault(row.path, len(found.paths)))
    found.lines.append(row.line)
    names = found.category_names
    found.categories.append(-1 if category is None else names.setdefault(category, len(names)))
    found.questions.append(len(prompt))
    found.answers.append(len(messages[-1].content))


def _hash(kind: str, text: str) -> int:
    """Never 0, which stands for none."""
    digest = hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def _count(cleaned: dict[str, Change], changes: Counter[str], row: Example) -> None:
    for kind, count in changes.items():
        change = cleaned.setdefault(kind, Change())
        change.rows += 1
        change.changes += count
        if len(change.lines) < _LINES_SHOWN:
            change.lines.append(f"{row.path}:{row.line}")
