"""The turns of a conversation as a row writes them, OpenAI's way or ShareGPT's, into messages."""

import json
from collections.abc import Iterator
from typing import Any

from distributed_ft.data.examples import ROLES, Message
from distributed_ft.data.files import Row, shorten, suggestion

# Ignoring one of these would train something else.
_UNSUPPORTED = ("function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_ALIASES = {  # of ShareGPT; `function_call` is a turn of its own kind
    **{name: name for name in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


def kind(value: Any) -> str:
    """What a JSON value is, for people."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def check_characters(row: Row, where: str, value: str) -> None:
    """Raises DataError for what no text has."""
    if "\0" in value:
        raise row.error(f"{where} contains a NUL character, {shorten(value)}", "remove it: text has none")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise row.error(
                f"{where} contains half of a surrogate pair, {shorten(value[max(0, error.start - 10) :])}, "
                "which is no character",
                "write the whole character, or replace it by \\ufffd",
            ) from None


# --- OpenAI --------------------------------------------------------------------------------------------------------


def chat_turns(row: Row, column: str, turns: Any) -> Iterator[Message]:
    """Of `[{"role": …, "content": …}, …]`."""
    for number, turn in enumerate(_listed(row, column, turns)):
        if type(turn) is dict and len(turn) == 2:  # nearly always: a role and a text
            role, content = turn.get("role"), turn.get("content")
            if type(content) is str and type(role) is str and role in ROLES and "\0" not in content:
                if not content.isascii():
                    check_characters(row, f"{column}[{number}].content", content)
                yield Message(role, content)
                continue
        yield _chat_turn(row, f"{column}[{number}]", turn)


def _listed(row: Row, column: str, turns: Any) -> list[Any]:
    if isinstance(turns, list):
        return turns
    raise row.error(
        f"{column} is {kind(turns)}, {shorten(turns)}, not a list",
        f'write "{column}": [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}]',
    )


def _chat_turn(row: Row, where: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise row.error(
            f"{where} is {kind(turn)}, {shorten(turn)}, not an object",
            'write it as {"role": "user", "content": "…"}',
        )
    calls = _tool_calls(row, f"{where}.tool_calls", turn.get("tool_calls"))
    for key in ("role",) if calls else ("role", "content"):
        if key not in turn:
            found = ", ".join(map(repr, turn)) or "none"
            sharegpt = "from" in turn and "value" in turn
            raise row.error(
                f"{where} has no {key!r} (found: {found})" + ("" if sharegpt else suggestion(turn, (key,))),
                "for turns of 'from' and 'value' write format: sharegpt in data.train"
                if sharegpt
                else "a message has a 'role' and a 'content'",
            )
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise row.error(
            f"{where}.role: unknown role {shorten(role)}" + suggestion((role,), ROLES), f"use one of {', '.join(ROLES)}"
        )
    for key in _UNSUPPORTED:
        if turn.get(key) not in _NOTHING:
            raise row.error(
                f"{where}.{key}: {shorten(turn[key])} is not supported",
                f"write what the model shall say into 'content' and remove {key!r}",
            )
    if calls and role != "assistant":
        raise row.error(f"{where}.tool_calls: a {role} turn calls no tools", "give the turn the role 'assistant'")
    content = _content(row, f"{where}.content", turn.get("content"), may_lack=bool(calls))
    extras: dict[str, Any] = {"tool_calls": calls} if calls else {}
    for key in ("tool_call_id", "name"):
        if turn.get(key) not in (None, ""):
            extras[key] = _name(row, f"{where}.{key}", turn[key])
    return Message(role, content, _trained(row, where, turn), _json(extras) if extras else "")


def _content(row: Row, where: str, content: Any, may_lack: bool = False) -> str:
    if content is None and may_lack:
        return ""
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        remedy = "write it as a string" if not isinstance(content, list) else "only text is learned: write a string"
        raise row.error(f"{where} is {kind(content)}, {shorten(content)}, not text", remedy)
    check_characters(row, where, content)
    return content


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _trained(row: Row, where: str, turn: dict[str, Any]) -> bool:
    weight = turn.get("weight")
    if weight in (None, "", 0, 1):
        return weight != 0
    raise row.error(
        f"{where}.weight: {shorten(weight)} is neither 0 nor 1", "write 0 for a turn that shall not be learned"
    )


def _name(row: Row, where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise row.error(f"{where} is {kind(value)}, {shorten(value)}, not text", "write it as a string")
    check_characters(row, where, value)
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# --- tools ---------------------------------------------------------------------------------------------------------


def tools_of(row: Row, tools: Any) -> str:
    """JSON list of the functions that a row offers, or nothing. The column holds a list, or a list as JSON text."""
    if tools in _NOTHING:
        return ""
    listed = _parsed(tools)
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise row.error(
            f"tools is {kind(tools)}, {shorten(tools)}, not a list of functions",
            'write [{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
        )
    text = _json(listed) if listed else ""
    check_characters(row, "tools", text)
    return text


def _tool_calls(row: Row, where: str, calls: Any) -> list[dict[str, Any]]:
    """The calls with their arguments as objects: templates write them out, and a string would be quoted twice."""
    if calls in _NOTHING:
        return []
    calls = _parsed(calls)
    if not isinstance(calls, list):
        raise row.error(f"{where} is {kind(calls)}, {shorten(calls)}, not a list", "write a list of function calls")
    return [_tool_call(row, f"{where}[{number}]", call) for number, call in enumerate(calls)]


def _tool_call(row: Row, where: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise row.error(
            f"{where} is {kind(call)}, {shorten(call)}, and names no function",
            'write {"type": "function", "function": {"name": "…", "arguments": {…}}}',
        )
    arguments = _parsed(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise row.error(
            f"{where}.arguments: {shorten(function['arguments'])} is no JSON object",
            "write the arguments by name: a broken call would be learned as it is",
        )
    check_characters(row, where, _json(call))
    named = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function", **named, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any) -> Any:
    """A value that may be JSON as text; as it is, when it is not."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


# --- ShareGPT ------------------------------------------------------------------------------------------------------


def sharegpt_turns(row: Row, column: str, turns: Any) -> Iterator[Message]:
    """Of `[{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]`; `role` and `content` are taken as well."""
    for number, turn in enumerate(_listed(row, column, turns)):
        where = f"{column}[{number}]"
        if not isinstance(turn, dict):
            raise row.error(
                f"{where} is {kind(turn)}, {shorten(turn)}, not an object",
                'write it as {"from": "human", "value": "…"}',
            )
        renamed = {_key(key): value for key, value in turn.items()}
        speaker = renamed.get("role")
        if speaker == "function_call":
            renamed = {**renamed, "role": "assistant", "content": "", "tool_calls": _called(renamed.get("content"))}
        elif isinstance(speaker, str) and speaker.lower() in _ALIASES:
            renamed["role"] = _ALIASES[speaker.lower()]
        elif "role" in renamed:
            names = (*_ALIASES, "function_call")
            raise row.error(
                f"{where}.from: unknown speaker {shorten(speaker)}" + suggestion((speaker,), names),
                f"use one of {', '.join(names)}",
            )
        if "role" not in renamed or "content" not in renamed:
            found = ", ".join(map(repr, turn)) or "none"
            lacking = "from" if "role" not in renamed else "value"
            raise row.error(
                f"{where} has no {lacking!r} (found: {found})" + suggestion(turn, (lacking,)),
                "a turn has a 'from' and a 'value'",
            )
        yield _chat_turn(row, where, renamed)


def _key(name: str) -> str:
    return {"from": "role", "value": "content"}.get(name, name)


def _called(value: Any) -> Any:
    """One call, or a list of them, mostly as JSON text; never nothing, as what is no call shall be reported."""
    called = _parsed(value)
    return called if isinstance(called, list) and called else [called]
