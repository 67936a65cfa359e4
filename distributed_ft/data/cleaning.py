"""White space put in order where no meaning can hang on it, and the rows that nothing can be learned from.

Left alone: fenced code (~~~ or ```, to its end or, unclosed, to the text's), indentation, text that is JSON, what
tools say, two spaces that break a line of Markdown (CommonMark 0.31, 6.7), and joiners inside words and emoji (U+200C,
U+200D). Pure, and cheap where there is nothing to do.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from distributed_ft.data.examples import Message

KINDS = {  # of change -> what was done, for people
    "line_ends": "line ends of Windows and old Macs made \\n",
    "odd_spaces": "no-break and typographic spaces made plain ones",
    "invisible": "zero-width characters and byte order marks removed",
    "trailing_spaces": "spaces at the end of a line removed, but for Markdown's two that break it",
    "blank_lines": "more than two blank lines in a row made two",
    "outer_lines": "blank lines before and white space behind the text removed",
}
_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_LINE_ENDS = re.compile(r"\r\n?")
_ODD_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
_TRAILING = re.compile(r"(?<![ \t])(?! {2}\n\S)[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")
_LEADING_LINES = re.compile(r"(?:[ \t]*\n)+")


def clean_messages(messages: Sequence[Message]) -> tuple[tuple[Message, ...], Counter[str]]:
    """The messages with `clean` content, and how many changes of which kind that took."""
    changes: Counter[str] = Counter()
    cleaned = []
    for message in messages:
        content = message.content if message.role == "tool" else clean(message.content, changes)
        cleaned.append(message if content is message.content else replace(message, content=content))
    return tuple(cleaned), changes


def clean(text: str, changes: Counter[str]) -> str:
    """`text` in order; the very same object when it was. Adds to `changes` by kind (see KINDS)."""
    if not _suspicious(text) or _is_json(text):
        return text
    parts, at = [], 0
    for fence in _FENCE.finditer(text) if "```" in text or "~~~" in text else ():
        parts += [_clean_prose(text[at : fence.start()], changes), fence.group()]
        at = fence.end()
    parts.append(_clean_prose(text[at:], changes))
    if leading := _LEADING_LINES.match(parts[0]):
        parts[0] = parts[0][leading.end() :]
        changes["outer_lines"] += 1
    if parts[-1] != (stripped := parts[-1].rstrip()):
        parts[-1] = stripped
        changes["outer_lines"] += 1
    joined = "".join(parts)
    return text if joined == text else joined


def unfit(messages: Sequence[Message], min_answer: int) -> str | None:
    """Why a row teaches nothing: a question or an answer is empty, or the last is under `min_answer` characters."""
    for message in messages:
        if message.content.strip() or message.role in ("system", "tool") or message.extras:
            continue
        return "empty question" if message.role == "user" else "empty answer"
    last = messages[-1]
    length = len(last.content.strip())
    return None if length >= min_answer or last.extras else f"short answer: {length} characters, not {min_answer}"


def _suspicious(text: str) -> bool:
    """Whether anything below could apply: a few searches at the speed of memory, for the rows that are in order."""
    if text[-1:].isspace() or text[:1] == "\n" or "\r" in text or " \n" in text or "\t\n" in text:
        return True
    if "\n\n\n\n" in text:
        return True
    return not text.isascii() and bool(_ODD_SPACES.search(text) or _INVISIBLE.search(text))


def _is_json(text: str) -> bool:
    stripped = text.strip()
    if stripped[:1] not in ("{", "["):
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def _clean_prose(text: str, changes: Counter[str]) -> str:
    for kind, pattern, replacement in (
        ("line_ends", _LINE_ENDS, "\n"),
        ("odd_spaces", _ODD_SPACES, " "),
        ("invisible", _INVISIBLE, ""),
        ("trailing_spaces", _TRAILING, ""),
        ("blank_lines", _BLANK_LINES, "\n\n\n"),
    ):
        text, count = pattern.subn(replacement, text)
        if count:
            changes[kind] += count
    return text
