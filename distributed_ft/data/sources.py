"""Data files: JSONL, JSON, CSV and TSV into conversations, or one error that names file, line, value and remedy.

Three shapes of row are read, one per file:

* chat: `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`
* Alpaca: `instruction`, `output`, optionally `input` and `system`
* pairs: `prompt` with `completion` or `response`, optionally `system`

A row that is wrong stops the reading: a fine-tune on what was left after silent skipping is not the one asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed_ft.data.examples import ROLES, Example, Message, digest_of
from distributed_ft.data.files import Row, read_rows, shorten, suggestion
from distributed_ft.errors import DataError

_SHAPES = {  # the column that gives a shape away -> (its name for people, the columns that hold text)
    "messages": ("chat rows ('messages')", ()),
    "instruction": ("Alpaca rows ('instruction', 'output')", ("output",)),
    "prompt": ("'prompt', 'completion' rows", ("completion", "response")),
}
_GROUP_COLUMNS = ("skill", "category", "group")
# Ignoring one of these would train something else.
_UNSUPPORTED_IN_MESSAGE = ("tool_calls", "function_call", "weight", "reasoning_content", "reasoning", "thinking")
_UNSUPPORTED_IN_ROW = ("tools", "functions", "history")


def read_examples(path: str | Path) -> list[Example]:
    """All rows of a data file, in its order. Raises DataError at the first fault."""
    path = Path(path)
    examples: list[Example] = []
    seen: set[str] = set()
    first: tuple[str, int] | None = None
    for row in read_rows(path):
        shape = _shape_of(row)
        first = first or (shape, row.line)
        if shape != first[0]:
            raise row.error(
                f"mixed shapes: this row is one of {_SHAPES[shape][0]}, but line {first[1]} is one of "
                f"{_SHAPES[first[0]][0]}",
                "keep one shape of row in a file; several files can be listed in data.train",
            )
        messages = tuple(_messages_of(row, shape))
        _check_conversation(row, messages)
        name = _id_of(row, path, seen)
        seen.add(name)
        group = next((row.values[c] for c in _GROUP_COLUMNS if isinstance(row.values.get(c), str)), None)
        _check_characters(row, "id", name)
        _check_characters(row, "group", group or "")
        examples.append(Example(name, messages, row.line, str(path), group, digest_of(messages)))
    if not examples:
        raise DataError(f"{path}: no rows in this file; give it at least one example")
    return examples


def _shape_of(row: Row) -> str:
    found = [column for column in _SHAPES if row.values.get(column) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise row.error(
            f"columns {' and '.join(map(repr, found))} in one row: which of them is the example?",
            "keep the columns of one shape: 'messages', or 'instruction' and 'output', or 'prompt' and 'completion'",
        )
    null = next((column for column in _SHAPES if column in row.values), None)
    if null is not None:
        raise row.error(f"{null} is null", f"fill {null!r}, or remove the row")
    columns = ", ".join(map(repr, row.values)) or "none"
    raise row.error(
        f"missing column: none of 'messages', 'instruction', 'prompt' is among the columns found ({columns})"
        + suggestion(row.values, tuple(_SHAPES)),
        "a row holds 'messages', or 'instruction' and 'output', or 'prompt' and 'completion'",
    )


def _messages_of(row: Row, shape: str) -> Iterator[Message]:
    for column in _UNSUPPORTED_IN_ROW:
        if row.values.get(column) not in (None, "", [], {}):
            raise row.error(
                f"{column}: {shorten(row.values[column])} is not supported",
                f"write it into the conversation as 'messages', and remove {column!r}",
            )
    if shape == "messages":
        yield from _chat_messages(row)
        return
    system = _text(row, "system", optional=True)
    if system:
        yield Message("system", system)
    question = _text(row, shape)
    if shape == "instruction":
        context = _text(row, "input", optional=True)
        question = question + "\n\n" + context if question and context else question or context
    yield Message("user", question)
    names = _SHAPES[shape][1]
    answers = [column for column in names if column in row.values]
    if len(answers) > 1:
        raise row.error(f"columns {' and '.join(map(repr, answers))} in one row", "keep one of them")
    if not answers:
        expected = " or ".join(map(repr, names))
        columns = ", ".join(map(repr, row.values))
        raise row.error(
            f"missing column {expected} (found: {columns})" + suggestion(row.values, names),
            f"the answer of a row with {shape!r} is in {expected}",
        )
    yield Message("assistant", _text(row, answers[0]))


def _text(row: Row, column: str, optional: bool = False) -> str:
    value = row.values.get(column)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise row.error(f"{column} is {_kind(value)}, {shorten(value)}, not text", f"write {column!r} as a string")
    _check_characters(row, column, value)
    return value


def _chat_messages(row: Row) -> Iterator[Message]:
    turns = row.values["messages"]
    if not isinstance(turns, list):
        raise row.error(
            f"messages is {_kind(turns)}, {shorten(turns)}, not a list",
            'write "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )
    for number, turn in enumerate(turns):
        where = f"messages[{number}]"
        if not isinstance(turn, dict):
            raise row.error(
                f"{where} is {_kind(turn)}, {shorten(turn)}, not an object",
                'write it as {"role": "user", "content": "…"}',
            )
        for key in ("role", "content"):
            if key not in turn:
                found = ", ".join(map(repr, turn)) or "none"
                raise row.error(
                    f"{where} has no {key!r} (found: {found})" + suggestion(turn, (key,)),
                    "a message has a 'role' and a 'content'",
                )
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            raise row.error(
                f"{where}.role: unknown role {shorten(role)}" + suggestion((role,), ROLES),
                f"use one of {', '.join(ROLES)}",
            )
        for key in _UNSUPPORTED_IN_MESSAGE:
            if turn.get(key) not in (None, "", [], 1):
                raise row.error(
                    f"{where}.{key}: {shorten(turn[key])} is not supported",
                    f"write what the model shall say into 'content' and remove {key!r}",
                )
        if not isinstance(content, str):
            raise row.error(
                f"{where}.content is {_kind(content)}, {shorten(content)}, not text", "write 'content' as a string"
            )
        _check_characters(row, f"{where}.content", content)
        yield Message(role, content)


def _check_characters(row: Row, where: str, value: str) -> None:
    if "\0" in value:
        raise row.error(f"{where} contains a NUL character, {shorten(value)}", "remove it: text has none")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise row.error(
            f"{where} contains half of a surrogate pair, {shorten(value)}, which is no character",
            "write the whole character, or replace it by \\ufffd",
        )


def _check_conversation(row: Row, messages: tuple[Message, ...]) -> None:
    roles = [m.role for m in messages]
    if "assistant" not in roles:
        raise row.error(
            f"the conversation has no assistant turn (roles: {', '.join(roles) or 'none'})",
            "add the answer that the model shall learn",
        )
    if roles[-1] != "assistant":
        raise row.error(
            f"the last turn is the {roles[-1]}'s, {shorten(messages[-1].content)}, not the assistant's",
            "end the conversation with an answer, or remove the turns after the last one",
        )
    if roles[0] == "assistant":
        raise row.error(
            f"the conversation begins with an assistant turn, {shorten(messages[0].content)}",
            "begin with a system or user turn: an answer needs something that it answers",
        )
    for number, message in enumerate(messages):
        if message.role in ("assistant", "user") and not message.content.strip():
            what = "answer" if message.role == "assistant" else "question"
            raise row.error(
                f"empty {what}: messages[{number}] ({message.role}) is {shorten(message.content)}",
                f"write the {what}, or remove the row",
            )


def _id_of(row: Row, path: Path, seen: set[str]) -> str:
    own = row.values.get("id")
    name = str(own) if isinstance(own, str | int) and str(own).strip() else f"{path.stem}:{row.line}"
    while name in seen:
        name = f"{name}@{row.line}"
    return name


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
