"""What all checks look at: a chunk of rows, read once; and what is kept of all chunks of a file.

Each check is two pure functions: `look(rows)`, of one chunk and in any process, returns facts that are compact; and
`judge(table, facts)`, of all chunks of a file, returns findings. So a file may be larger than memory, and each core
takes a chunk.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute as pc

from distributed_ft.data.audit.forms import Form, form_of
from distributed_ft.data.audit.masking import masked
from distributed_ft.data.audit.words import Hashes, Index, Words, words_of
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.findings import Finding, Severity, Shown, severity_of

T = TypeVar("T", bound=np.generic)
Codes = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

SHOWN_ROWS = 3  # examples of a finding
LEAST = 20  # rows: of fewer there is no telling what is usual
_LEAST_ALIKE = 100  # rows that only begin alike
_SHOWN_PROMPT, _SHOWN_ANSWER = 90, 120  # characters


@dataclass(frozen=True)
class Rows:
    """One chunk of a file, with what several checks need of it, made when first asked for."""

    examples: Sequence[Example]

    @cached_property
    def prompts(self) -> list[str]:
        """What stands before the last answer; of plain text nothing."""
        return [e.prompt for e in self.examples]

    @cached_property
    def answers(self) -> list[str]:
        return [e.answer for e in self.examples]

    @cached_property
    def words(self) -> Words:
        """Those of prompt 0, answer 0, prompt 1, answer 1, …"""
        return words_of([text for pair in zip(self.prompts, self.answers, strict=True) for text in pair])

    @cached_property
    def sequences(self) -> Hashes:
        """One hash of prompt 0, answer 0, prompt 1, …, normalised; 0: no words."""
        return self.words.sequences()

    @cached_property
    def forms(self) -> list[Form]:
        """Of each answer."""
        return list(map(form_of, self.answers))

    @cached_property
    def texts(self) -> list[str]:
        """All that is said in each row, and what tools are called with."""
        texts = [f"{p}\n{a}" for p, a in zip(self.prompts, self.answers, strict=True)]
        for row, message in [(row, m) for row, e in enumerate(self.examples) for m in e.messages if m.extras]:
            texts[row] += _arguments(message)
        return texts

    @cached_property
    def _columns(self) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
        return _column(self.texts), _column(self.answers)

    def holding(self, pattern: str) -> list[int]:
        """The rows in whose text `pattern` matches: a regular expression of RE2, so one pass, however long it is.

        Of `re` each of many alternatives is a pass of its own; what is rare is sought by RE2, and judged by `re`.
        """
        return _matches(self._columns[0], pattern)

    def answering(self, pattern: str) -> list[int]:
        """The rows in whose answer `pattern` matches."""
        return _matches(self._columns[1], pattern)


def _arguments(message: Message) -> str:
    """What each tool is called with: JSON, a line each."""
    calls = json.loads(message.extras).get("tool_calls", ())
    return "".join(f"\n{json.dumps(call['function']['arguments'], ensure_ascii=False)}" for call in calls)


def matching(texts: Sequence[str], pattern: str) -> list[int]:
    """Those of the texts in which `pattern`, a regular expression of RE2, matches."""
    return _matches(_column(texts), pattern)


def _column(texts: Sequence[str]) -> pyarrow.StringArray:
    # Not pyarrow.array, nor numpy of what it gives: they would import pandas, 0.2 s and 50 MB, where it is there.
    data = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return pyarrow.StringArray.from_buffers(len(data), pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(data)))


def _matches(column: pyarrow.StringArray, pattern: str) -> list[int]:
    found: list[int] = pc.indices_nonzero(pc.match_substring_regex(column, pattern)).to_pylist()
    return found


@dataclass(frozen=True, slots=True)
class Basics:
    """What is kept of each row of a chunk, about 300 bytes a row with what may be shown of it."""

    path: str  # the file that the chunk is of
    lines: Index  # where each row begins in the file, counted from 1
    digests: Hashes  # of the messages
    prompts: Hashes  # of the normalised prompt; 0: it has no words
    answers: Hashes  # of the normalised answer
    prompt_lengths: Codes  # characters
    answer_lengths: Codes
    parts: npt.NDArray[np.uint32]  # which rows ask for the same kind of answer
    names: dict[int, str]  # of the parts that have one: the row's own category
    categories: Counter[str]
    shown: list[str]


def basics(rows: Rows) -> Basics:
    parts = [_part(e) for e in rows.examples]
    return Basics(
        path=rows.examples[0].path if rows.examples else "",
        lines=np.array([e.line for e in rows.examples], np.int64),
        digests=np.array([int(e.digest[:16], 16) for e in rows.examples], np.uint64),
        prompts=rows.sequences[::2],
        answers=rows.sequences[1::2],
        prompt_lengths=np.array(list(map(len, rows.prompts)), np.int32),
        answer_lengths=np.array(list(map(len, rows.answers)), np.int32),
        parts=np.array(parts, np.uint32),
        names={part: e.group for part, e in zip(parts, rows.examples, strict=True) if e.group},
        categories=Counter(e.group for e in rows.examples if e.group),
        shown=[cut(p, a) for p, a in zip(rows.prompts, rows.answers, strict=True)],
    )


def _part(example: Example) -> int:
    """A row's own category; else what its instruction begins with: the system message, three words of the turn."""
    if example.group:
        return zlib.crc32(example.group.encode())
    first = example.messages[0]
    if first.role == TEXT:
        return 0
    begin = example.messages[1].content if first.role == "system" and len(example.messages) > 1 else first.content
    system = first.content if first.role == "system" else ""
    return zlib.crc32(f"{system}\0{begin[:60].split(None, 3)[:3]}".encode())


def cut(prompt: str, answer: str) -> str:
    """The end of a prompt and the start of its answer; cut between words, and not within what is to be masked."""
    end, start = prompt, answer
    if len(prompt) > _SHOWN_PROMPT:
        end = "…" + prompt[-_SHOWN_PROMPT:].partition(" ")[2].lstrip("0123456789+()- ")
    if len(answer) > _SHOWN_ANSWER:
        start = answer[:_SHOWN_ANSWER].rpartition(" ")[0].rstrip("0123456789+()- ") + "…"
    return f"{end} → {start}" if end else start


@dataclass(frozen=True)
class Table:
    """The rows of a file, as the checks judge them."""

    path: str
    chunks: Sequence[Basics]

    @cached_property
    def lines(self) -> Index:
        return joined([c.lines for c in self.chunks], np.int64)

    @property
    def size(self) -> int:
        return len(self.lines)

    @cached_property
    def answer_lengths(self) -> Codes:
        return joined([c.answer_lengths for c in self.chunks], np.int32)

    @cached_property
    def prompt_lengths(self) -> Codes:
        return joined([c.prompt_lengths for c in self.chunks], np.int32)

    @cached_property
    def answers(self) -> Hashes:
        return joined([c.answers for c in self.chunks], np.uint64)

    @cached_property
    def prompts(self) -> Hashes:
        return joined([c.prompts for c in self.chunks], np.uint64)

    @cached_property
    def digests(self) -> Hashes:
        return joined([c.digests for c in self.chunks], np.uint64)

    @cached_property
    def categories(self) -> Counter[str]:
        """Rows by their own category; none where that is a key, different in most rows."""
        counts: Counter[str] = Counter()
        for chunk in self.chunks:
            counts.update(chunk.categories)
        return counts if len(counts) <= counts.total() / 2 else Counter()

    @cached_property
    def _bounds(self) -> Index:
        return np.cumsum([len(c.lines) for c in self.chunks])

    @cached_property
    def parts(self) -> list[tuple[str, Indices]]:
        """The rows that ask for the same kind of answer, with a name for people; last those of which there are few."""
        keys = joined([c.parts for c in self.chunks], np.uint32)
        names = {key: name for c in self.chunks for key, name in c.names.items()}
        order = np.argsort(keys, kind="stable")
        bounds = np.flatnonzero(np.diff(keys[order])) + 1
        found, few = [], [np.zeros(0, np.int64)]
        for rows in np.split(order, bounds):
            name = names.get(int(keys[rows[0]])) if len(rows) else None
            if len(rows) >= (LEAST if name else _LEAST_ALIKE):
                found.append((f" of category {name!r}" if name else "", rows))
            else:
                few.append(rows)
        rest = np.sort(np.concatenate(few))
        return [*found, ("", rest)] if len(rest) >= LEAST else found

    def shown(self, row: int) -> Shown:
        """What people get to see of a row."""
        chunk = int(np.searchsorted(self._bounds, row, side="right"))
        basics = self.chunks[chunk]
        inside = row - int(self._bounds[chunk]) + len(basics.lines)
        return Shown(int(basics.lines[inside]), masked(basics.shown[inside]))

    def finding(
        self,
        name: str,
        rows: Iterable[int] | Indices,
        message: str,
        severity: Severity | None = None,
        shown: Mapping[int, Shown] | None = None,
    ) -> list[Finding]:
        """A finding about these rows (indices, in any order), one for each file that they are in; `shown`: of some of
        them what people get to see."""
        rows = np.unique(np.fromiter(rows, np.int64) if not isinstance(rows, np.ndarray) else rows)
        severity = severity or severity_of(name, len(rows), self.size)
        chunks = np.searchsorted(self._bounds, rows, side="right")
        paths = np.array([c.path for c in self.chunks], dtype=object)[chunks]
        found = []
        for path in dict.fromkeys(paths.tolist()):  # one, but of a folder of shards
            mine = rows[paths == path]
            examples = [shown[r] for r in mine.tolist() if r in shown] if shown else []
            examples = examples or [self.shown(int(r)) for r in mine[:SHOWN_ROWS]]
            found.append(
                Finding(
                    id=name,
                    severity=severity,
                    count=len(mine),
                    rows=np.sort(self.lines[mine]).tolist(),
                    message=f"{len(mine):,} of {self.size:,} rows: {message}",
                    path=path,
                    examples=tuple(examples[:SHOWN_ROWS]),
                )
            )
        return found


def joined(arrays: Sequence[npt.NDArray[T]], kind: type[T]) -> npt.NDArray[T]:
    """One after the other; also none at all."""
    return np.concatenate([np.zeros(0, kind), *arrays])
