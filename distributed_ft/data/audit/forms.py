"""What form an answer has, from its first character to its last.

A form is a short name. Of an answer of several blocks it is the blocks in order, as in `text+list`: so an answer that
begins as a list and goes on as prose (`list+text`) differs from a list, and where it does is known.
"""

import json
import re
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

TEXT, SHORT, NUMBER, EMPTY = "text", "short", "number", "empty"
OBJECT, ARRAY, FENCE, TAGS, LIST, NUMBERED, PAIRS, TABLE = (
    "JSON object", "JSON array", "fenced block", "tags", "list", "numbered list", "key: value lines", "table",
)  # fmt: skip
STRUCTURED = (OBJECT, ARRAY, FENCE, TAGS, LIST, NUMBERED, PAIRS, TABLE)

_SHORT, _SHORT_WORDS = 48, 6  # of an answer that is a label or a name
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d.,]*\s?%?")
_BULLET = re.compile(r"[-*•–]\s+\S")
_NUMBERED = re.compile(r"\(?\d{1,3}[.)]\s+\S")
_PAIR = re.compile(r"(?:\*\*)?[A-Za-z_][\w /-]{0,30}(?:\*\*)?\s?:(?:\*\*)?(?:\s+\S|$)")
_FENCE_LINE = re.compile("^```", re.MULTILINE)
_OPEN_TAG = re.compile(r"<([A-Za-z_][\w.-]*)(?:\s[^<>]*)?>")
_WORD_CUT = re.compile(r"[\w.+-]*")  # a number, or a part of true, false, null
_PARSER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Form:
    """The form of one answer."""

    name: str
    breaks: int = 0  # the character where its second block begins, or where it stops being well-formed
    cut: bool = False  # ends within something that must be closed
    value: Any = None  # what the JSON says, where the answer is JSON


def form_of(answer: str) -> Form:
    """The form of an answer."""
    text = answer.strip()
    if not text:
        return Form(EMPTY)
    offset = answer.find(text[0])
    first = text[0]
    found = None
    if first in "{[":
        found = _json(text)
    elif "```" in text:
        found = _fenced(text)
    elif first == "<":
        found = _tagged(text)
    if found is None and "\n" in text:
        found = _blocks(text)
    if found is None:
        found = _line(text)
    return Form(found.name, found.breaks + offset, found.cut, found.value) if offset else found


def _json(text: str) -> Form | None:
    """JSON and what follows it; None where it only looks like it: [a link], {a name}."""
    name = OBJECT if text[0] == "{" else ARRAY
    try:
        value, end = _PARSER.raw_decode(text)
    except (JSONDecodeError, RecursionError) as error:
        at = error.pos if isinstance(error, JSONDecodeError) else 0
        if at <= 1 or (at < 6 and text[1:2].isalpha()):
            return None
        if _ends_inside(text, error):
            return Form(name, at, cut=True)
        return Form(f"broken {name}", at)
    rest = text[end:].lstrip()
    if rest:
        return Form(f"{name}+{TEXT}", len(text) - len(rest))
    return Form(name, value=value)


def _ends_inside(text: str, error: Exception) -> bool:
    if not isinstance(error, JSONDecodeError):
        return False
    if error.msg.startswith("Unterminated string"):
        return True
    rest = text[error.pos :]
    if rest in (".", "e", "E"):  # a number goes on so
        return True
    return not rest.strip() or (error.msg.startswith("Expecting value") and bool(_WORD_CUT.fullmatch(rest)))


def _fenced(text: str) -> Form:
    """Code in ``` fences, and what stands around it."""
    parts = _FENCE_LINE.split(text)  # not those that the code itself shows
    if len(parts) == 1:
        parts = text.split("```")
    if len(parts) == 2:  # one fence only
        if parts[1].strip() and not text.startswith("```"):
            before = parts[0].rstrip()
            inner = before.lstrip()[:1] in "{[" and not parts[1].strip()
            return Form(f"{TEXT}+{FENCE}", 0 if inner else len(before), cut=True)
        if not parts[1].strip():  # it closes what was never opened
            return Form(f"{TEXT}+{FENCE}", 0)
        return Form(FENCE, len(text), cut=True)
    cut = len(parts) % 2 == 0
    if len(parts) > 4:
        return Form(f"{TEXT}+{FENCE}+{TEXT}", len(parts[0]), cut)
    names = [TEXT] * bool(parts[0].strip()) + [FENCE] + [TEXT] * bool(parts[2].strip())
    breaks = 0 if parts[0].strip() else len(text) - len(parts[2].lstrip()) if parts[2].strip() else 0
    return Form("+".join(names), breaks, cut)


def _tagged(text: str) -> Form | None:
    """<tag> … </tag>, and what follows it."""
    opened = _OPEN_TAG.match(text)
    if opened is None:
        return None
    close = f"</{opened[1]}>"
    end = text.rfind(close)
    if end < 0:
        return Form(TAGS, len(text), cut=True)
    rest = text[end + len(close) :].strip()
    if not rest:
        return Form(TAGS)
    after = len(text) - len(rest)
    return Form(TAGS, after) if rest.startswith("<") and rest.endswith(">") else Form(f"{TAGS}+{TEXT}", after)


def _blocks(text: str) -> Form:
    names: list[str] = []
    breaks = at = 0
    for line in text.split("\n"):
        kind = _kind(line)
        if kind and (not names or names[-1] != kind):
            if kind in "{[":  # JSON behind an introduction
                return Form(f"{TEXT}+{OBJECT if kind == '{' else ARRAY}", 0)
            names.append(kind)
            if len(names) == 2:
                breaks = at
        at += len(line) + 1
    if len(names) > 3:
        names = [names[0], names[1], "…"]
    return Form("+".join(names) or TEXT, breaks)


def _kind(line: str) -> str:
    """What a line is; nothing: it belongs to the block before it."""
    first = line[:1]
    if not first or first in " \t\r":
        return ""
    if first in "-*•–" and _BULLET.match(line):
        return LIST
    if first in "0123456789(" and _NUMBERED.match(line):
        return NUMBERED
    if first == "|":
        return TABLE
    if first in "{[" and line[1:].lstrip()[:1] in ("", '"', "{", "["):
        return first
    if ":" in line and _PAIR.match(line):
        return PAIRS
    return TEXT


def _line(text: str) -> Form:
    """One line."""
    at = text.find('{"')
    if at > 0:
        try:
            _, end = _PARSER.raw_decode(text, at)
        except (JSONDecodeError, RecursionError):
            pass
        else:
            return Form(f"{TEXT}+{OBJECT}" if end == len(text) else f"{TEXT}+{OBJECT}+{TEXT}", 0)
    if len(text) <= _SHORT:
        if _NUMBER.fullmatch(text):
            return Form(NUMBER)
        if text.count(" ") < _SHORT_WORDS and text[-1] not in ".!?":
            kind = _kind(text)
            return Form(kind if kind in (LIST, NUMBERED, PAIRS) else SHORT)
    kind = _kind(text)
    return Form(kind if kind in (LIST, NUMBERED) else TEXT)
