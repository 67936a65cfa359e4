"""A record of a data file into an Example, or one error that names file, line, value and remedy.

Five shapes of row are read, one per file, told by the columns of its first rows (or by `format`):

* chat: `messages` of `role` and `content`, as OpenAI writes them, with `tools`, `tool_calls` and `weight`
* sharegpt: `conversations` of `from` and `value`
* alpaca: `instruction`, `output`, optionally `input` (or `context`) and `history`
* pairs: `prompt` with `completion` or `response`, each a text or a list of messages; optionally `context`
* text: `text`, all of which is learned

All but the last may have a column `system`, and `tools`. An `id` and a `skill`, `category` or `group` are kept.
Columns of other names are mapped to these ones: `columns: {prompt: question, completion: answer}`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from distributed_ft.config.schema import ColumnName, DataFormat
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.files import Row, shorten, suggestion
from distributed_ft.data.turns import chat_turns, check_characters, kind, sharegpt_turns, tools_of
from distributed_ft.errors import DataError

Shape = Literal["chat", "sharegpt", "alpaca", "pairs", "text"]
_TRIGGERS: dict[Shape, str] = {  # the column that gives a shape away
    "chat": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "pairs": "prompt",
    "text": "text",
}
_TRIGGER_COLUMNS = frozenset(_TRIGGERS.values())
NAMES: dict[Shape, str] = {
    "chat": "chat rows ('messages')",
    "sharegpt": "ShareGPT rows ('conversations')",
    "alpaca": "Alpaca rows ('instruction', 'output')",
    "pairs": "'prompt', 'completion' rows",
    "text": "plain text ('text')",
}
_ANSWERS: dict[Shape, tuple[str, ...]] = {
    "alpaca": ("output", "response", "completion"),
    "pairs": ("completion", "response"),
}
_GROUP_COLUMNS = ("skill", "category", "group")
_REMEDY = "a row holds 'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion', or 'text'; "
_REMEDY += "other names are mapped by columns: {prompt: …, completion: …} in data.train"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are to be understood."""

    shape: Shape
    told_by: tuple[str, int] | None  # file and line of the row that told; None: the user, and other columns are free
    columns: Mapping[ColumnName, str]
    keep: tuple[str, ...]  # columns to keep as text
    of_task: bool = False  # an answer may be a number or a boolean: a label, an index
    unanswered: bool = False  # a row may have no answer: it gets an empty one


def layout_of(row: Row, form: DataFormat, columns: Mapping[ColumnName, str], keep: tuple[str, ...]) -> Layout:
    """The layout that a row tells, as far as `form` and `columns` leave it open. Raises DataError."""
    mapped: Shape | None = None
    if "messages" in columns:
        mapped = "chat"
    elif "text" in columns:
        mapped = "text"
    elif "prompt" in columns or "completion" in columns:
        mapped = "pairs"
    if form != "auto" and form != "columns":
        return Layout(form, None, columns, keep)
    if mapped is not None:
        return Layout(mapped, None, columns, keep)
    return Layout(_told(row), (row.path, row.line), columns, keep)


def example_of(row: Row, layout: Layout, stem: str) -> Example:
    """The row as an example; `stem` begins the id of a row that has none. Raises DataError.

    Answers and questions may be empty: the audit reports them.
    """
    kept = {name: _shown(row.values[name]) for name in layout.keep if row.values.get(name) is not None}
    mapped = Row(row.path, row.line, _renamed(row, layout.columns)) if layout.columns else row
    if layout.told_by is not None:
        _check_shape(mapped, layout.shape, *layout.told_by)
    if layout.of_task:
        mapped = Row(row.path, row.line, _with_answer(mapped.values, layout))
    values = mapped.values
    if values.get("functions") not in (None, "", []):
        raise row.error(
            f"functions: {shorten(values['functions'])} is not supported", "write them as 'tools', and remove it"
        )
    messages = tuple(_READERS[layout.shape](mapped))
    if layout.shape != "text":
        _check_conversation(mapped, messages)
    tools = tools_of(mapped, values["tools"]) if "tools" in values else ""
    own = values.get("id")
    name = str(own) if isinstance(own, str | int) and str(own).strip() else f"{stem}:{row.line}"
    group = _group_of(mapped, layout.columns)
    check_characters(row, "id", name)
    check_characters(row, "group", group or "")
    for column, value in kept.items():
        check_characters(row, column, value)
    return Example(name, messages, row.line, row.path, group, tools, kept)


# --- columns -------------------------------------------------------------------------------------------------------


def _told(row: Row) -> Shape:
    found = [shape for shape, column in _TRIGGERS.items() if row.values.get(column) is not None]
    if len(found) > 1:
        # Beside a conversation, its text or its first question alone is another form of the same.
        conversation = "chat" in found or "sharegpt" in found
        answered = any(row.values.get(column) is not None for column in _ANSWERS["pairs"])
        found = [s for s in found if s != "text" and not (s == "pairs" and conversation and not answered)]
    if len(found) == 1:
        return found[0]
    if found:
        raise row.error(
            f"columns {' and '.join(repr(_TRIGGERS[shape]) for shape in found)} in one row: which of them is the "
            "example?",
            f"say so by format: {' or '.join(found)} in data.train, or keep the columns of one shape",
        )
    if row.values.get("chosen") is not None:
        raise row.error(
            f"'chosen' is preference data, {shorten(row.values['chosen'])}, which is not learned from",
            "keep the question as 'prompt' and the chosen answer as 'completion'",
        )
    null = next((column for column in _TRIGGER_COLUMNS if column in row.values), None)
    if null is not None:
        raise row.error(f"{null} is null", f"fill {null!r}, or remove the row")
    raise _missing(row, "none of 'messages', 'conversations', 'instruction', 'prompt', 'text' is among the columns")


def _missing(row: Row, what: str) -> DataError:
    columns = ", ".join(map(repr, list(row.values)[:20])) or "none"
    expected = (*_TRIGGERS.values(), "completion")
    return row.error(f"missing column: {what} (found: {columns})" + suggestion(row.values, expected), _REMEDY)


def _check_shape(row: Row, shape: Shape, path: str, line: int) -> None:
    seen = _TRIGGER_COLUMNS & row.values.keys()
    if len(seen) == 1 and row.values.get(_TRIGGERS[shape]) is not None:
        return
    told = _told(row)
    if told != shape:
        place = f"line {line}" if path == row.path else f"{path}:{line}"
        raise row.error(
            f"mixed shapes: this row is one of {NAMES[told]}, but {place} is one of {NAMES[shape]}",
            "keep one shape of row in a file, or in a folder of files; several can be listed in data.train",
        )


def _renamed(row: Row, columns: Mapping[ColumnName, str]) -> dict[str, Any]:
    """The row's values by the names that they are mapped to; what is not mapped keeps its name."""
    for target in ("messages", "prompt", "completion", "text"):
        source = columns.get(target)
        if source is not None and source not in row.values:
            found = ", ".join(map(repr, list(row.values)[:20])) or "none"
            raise row.error(
                f"missing column {source!r} (found: {found})" + suggestion(row.values, (source,)),
                f"correct columns: {{{target}: {source}}} in data.train, or give the row that column",
            )
    taken = set(columns.values())
    values = {name: value for name, value in row.values.items() if name not in taken and name not in columns}
    return {**values, **{target: row.values[source] for target, source in columns.items() if source in row.values}}


def _with_answer(values: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The row's values with an answer that is text, where one is there or may lack."""
    column, name, said = {"chat": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}.get(
        layout.shape, ("", "", "")
    )
    turns = values.get(column)
    if layout.unanswered and isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        asked = turns[-1].get(name) in ("user", "human", "tool")
        return {**values, column: [*turns, {name: "assistant", said: ""}]} if asked else values
    answers = _ANSWERS.get(layout.shape, ())
    shown = {a: _shown(values[a]) for a in answers if isinstance(values.get(a), bool | int | float)}
    lacks = layout.unanswered and answers and all(values.get(a) is None for a in answers)
    return {**values, **shown, **({answers[0]: ""} if lacks else {})}


def _group_of(row: Row, columns: Mapping[ColumnName, str]) -> str | None:
    if "category" in columns:
        value = row.values.get("category")
        return None if value is None else _shown(value)
    return next((_shown(row.values[c]) for c in _GROUP_COLUMNS if isinstance(row.values.get(c), str | int)), None)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(row: Row, column: str, optional: bool = False) -> str:
    value = row.values.get(column)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        if column not in row.values:
            raise _missing(row, repr(column))
        raise row.error(f"{column} is {kind(value)}, {shorten(value)}, not text", f"write {column!r} as a string")
    check_characters(row, column, value)
    return value


# --- shapes --------------------------------------------------------------------------------------------------------


def _chat(row: Row) -> Iterator[Message]:
    _refuse_history(row)
    return _with_system(row, chat_turns(row, "messages", _present(row, "messages")))


def _sharegpt(row: Row) -> Iterator[Message]:
    _refuse_history(row)
    column = "messages" if "conversations" not in row.values and "messages" in row.values else "conversations"
    return _with_system(row, sharegpt_turns(row, column, _present(row, column)))


def _with_system(row: Row, turns: Iterator[Message]) -> Iterator[Message]:
    """The conversation behind the system prompt of the column `system`, unless it has its own."""
    system = _text(row, "system", optional=True)
    if not system:
        return turns
    first = next(turns, None)
    begin = [] if first is None else [first]
    return chain(begin if first and first.role == "system" else [Message("system", system), *begin], turns)


def _present(row: Row, column: str) -> Any:
    value = row.values.get(column)
    if value is not None:
        return value
    if column not in row.values:
        raise _missing(row, repr(column))
    raise row.error(f"{column} is null", f"fill {column!r}, or remove the row")


def _alpaca(row: Row) -> Iterator[Message]:
    context = _text(row, "context" if row.values.get("input") is None else "input", optional=True)
    turns = [
        *_history(row),
        Message("user", _joined(_text(row, "instruction"), context)),
        Message("assistant", _text(row, _answer_column(row, "alpaca"))),
    ]
    return _with_system(row, iter(turns))


def _pairs(row: Row) -> Iterator[Message]:
    _refuse_history(row)
    column = _answer_column(row, "pairs")
    return _with_system(row, chain(_question(row), _side(row, column, "assistant")))


def _question(row: Row) -> Iterator[Message]:
    context = _text(row, "context", optional=True)
    if not context:
        return _side(row, "prompt", "user")
    return iter([Message("user", _joined(_text(row, "prompt"), context))])


def _side(row: Row, column: str, role: str) -> Iterator[Message]:
    """A prompt or a completion: a text, or a list of messages."""
    if isinstance(row.values.get(column), list):
        return chat_turns(row, column, row.values[column])
    return iter([Message(role, _text(row, column))])


def _plain_text(row: Row) -> Iterator[Message]:
    return iter([Message(TEXT, _text(row, "text"))])


_READERS: dict[Shape, Callable[[Row], Iterator[Message]]] = {
    "chat": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "pairs": _pairs,
    "text": _plain_text,
}


def _joined(question: str, context: str) -> str:
    return question + "\n\n" + context if question and context else question or context


def _answer_column(row: Row, shape: Shape) -> str:
    names = _ANSWERS[shape]
    answers = [column for column in names if row.values.get(column) is not None]
    if len(answers) > 1:
        raise row.error(f"columns {' and '.join(map(repr, answers))} in one row", "keep one of them")
    if answers:
        return answers[0]
    null = next((column for column in names if column in row.values), None)
    if null is not None:
        return null
    expected, columns = " or ".join(map(repr, names)), ", ".join(map(repr, row.values))
    preference = "; 'chosen' is preference data, which is not learned from" if "chosen" in row.values else ""
    raise row.error(
        f"missing column {expected} (found: {columns})" + (preference or suggestion(row.values, names)),
        f"the answer of a row with {_TRIGGERS[shape]!r} is in {expected}",
    )


def _history(row: Row) -> Iterator[Message]:
    history = row.values.get("history")
    if history in (None, "", []):
        return
    for number, turn in enumerate(history if isinstance(history, list) else [history]):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            raise row.error(
                f"history[{number}] is {kind(turn)}, {shorten(turn)}, not a question and its answer",
                'write "history": [["question", "answer"], …]',
            )
        for part in turn:
            check_characters(row, f"history[{number}]", part)
        yield Message("user", turn[0])
        yield Message("assistant", turn[1])


def _refuse_history(row: Row) -> None:
    if row.values.get("history") not in (None, "", []):
        raise row.error(
            f"history: {shorten(row.values['history'])} is not supported in this shape",
            "write it into the conversation as 'messages', and remove 'history'",
        )


def _check_conversation(row: Row, messages: tuple[Message, ...]) -> None:
    if len(messages) == 2 and messages[0].role == "user" and messages[1].role == "assistant":  # mostly
        return
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
