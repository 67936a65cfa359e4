"""What a row of data is once it has been read: a conversation, and where it stands in which file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
TEXT = "text"  # the role of the only message of a row of plain text: all of it is learned, no template is written
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # once: dumps would make one for each row


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # one of ROLES, or TEXT
    content: str
    trained: bool = True  # of an assistant turn: the model shall learn to say it (`weight: 0` means not)
    extras: str = ""  # JSON object of what else the chat template gets: tool_calls, tool_call_id, name, reasoning

    def __reduce__(self) -> tuple[Any, ...]:
        # a frozen dataclass with slots has a pickle of its own, 8 times slower, and rows go between processes
        return Message, (self.role, self.content, self.trained, self.extras)

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates take it."""
        more = json.loads(self.extras) if self.extras else {}
        return {"role": self.role, "content": self.content, **more}

    def as_written(self) -> dict[str, Any]:
        """The turn as a row of `messages` has it: what is read from it is this turn."""
        return self.for_template() | ({} if self.trained else {"weight": 0})


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a conversation whose last turn is the assistant's, or one message of plain text."""

    id: str  # the row's own `id`, else `<file stem>:<line>`; unique in its file
    messages: tuple[Message, ...]
    line: int  # where the row begins in the file, counted from 1
    path: str
    group: str | None  # the row's skill, category or group
    tools: str = ""  # JSON list of the functions that the assistant may call
    columns: Mapping[str, str] = field(default_factory=dict)  # those that the reader was asked to keep
    cluster: str | None = None  # rows of one are not independent (they share a passage); None: it stands alone

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.id, self.messages, self.line, self.path, self.group, self.tools, self.columns, self.cluster)
        return Example, fields

    @property
    def digest(self) -> str:
        """Hex sha256 of messages and tools: equal rows have equal digests, whatever file they come from."""
        return digest_of(self.messages, self.tools)

    @property
    def answer(self) -> str:
        """What the model shall say last."""
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """What stands before the last answer, a line break between turns; nothing for plain text."""
        return "\n".join(m.content for m in self.messages[:-1])


def digest_of(messages: tuple[Message, ...], tools: str = "") -> str:
    """Hex sha256 of what the model is shown and shall say."""
    plain = not tools and all(m.trained and not m.extras for m in messages)
    turns: Any = [[m.role, m.content] if plain else [m.role, m.content, m.trained, m.extras] for m in messages]
    text = _ENCODER.encode(turns if plain else [turns, tools])
    return hashlib.sha256(text.encode()).hexdigest()
