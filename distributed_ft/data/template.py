"""The text of a conversation, as the tokenizer's own chat template writes it, and where the answers stand in it.

Where an assistant turn begins is found by rendering: behind the text of the messages before it with the generation
prompt. Templates with `{% generation %}` markers may narrow what is learned of a turn, and are held to that rendering:
a marker that reaches into other turns does not make them learned.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from distributed_ft.data.examples import Message
from distributed_ft.data.files import shorten
from distributed_ft.errors import DataError

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerFast as Tokenizer

Supervise = Literal["all", "last"]
Span = tuple[int, int]  # characters of the text
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

# Some templates write today's date, by transformers' `strftime_now`. Here it is always one day, the one that Llama's
# templates name where there is no clock: or a run could not be resumed on the next day, and would be judged on other
# prompts than it learned. (A template's own macro comes before the function of that name; functions cannot be passed.)
_ONE_DAY = {"d": 26, "m": "07", "b": "Jul", "B": "July", "Y": 2024, "y": 24, "a": "Fri", "A": "Friday"}
_ONE_DAY |= {"H": 12, "I": 12, "M": "00", "S": "00", "p": "PM", "j": 208}
_CLOCK = (
    "{%- macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{directive}', '{value}')" for directive, value in _ONE_DAY.items())
    + " }}{%- endmacro %}"
)


class TemplateFault(DataError):
    """A conversation and a template that do not fit; `finding` is what an audit calls it."""

    def __init__(self, finding: str, message: str) -> None:
        super().__init__(message)
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Specials:
    """The tokenizer's special tokens, looked up once: its own properties build a new dictionary at each call."""

    ids: frozenset[int]
    pattern: re.Pattern[str] | None

    @staticmethod
    def of(tokenizer: "Tokenizer") -> "Specials":
        """Those of its added tokens that are special."""
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        texts = sorted(special.values(), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        return Specials(frozenset(special) | frozenset(tokenizer.all_special_ids), pattern)

    def blanked(self, text: str) -> str:
        """As long as `text`, with nothing to be found in special tokens."""
        return self.pattern.sub(lambda match: "\0" * len(match.group()), text) if self.pattern else text

    def last(self, text: str, start: int, end: int) -> int | None:
        """Where the last of them in `text[start:end]` ends."""
        return max((m.end() for m in self.pattern.finditer(text, start, end)), default=None) if self.pattern else None

    def among(self, texts: Sequence[str]) -> bool:
        """Whether any of the texts contains one."""
        return self.pattern is not None and any(self.pattern.search(text) for text in texts)


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn: the characters `start:end` of the text."""

    start: int  # behind the generation prompt
    end: int
    content_end: int | None = None  # of the message's own text; None: tool calls, or the template rewrote it
    marks: tuple[Span, ...] | None = None  # what of it is learned, by the template's markers; None: it has none
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The text of a conversation and its assistant turns, in order."""

    text: str
    turns: list[Turn]
    foreign_specials: bool  # a message's own text contains special tokens


@dataclass(frozen=True, slots=True)
class Template:
    """A tokenizer's chat template and what it is given besides the conversation, looked up once."""

    source: str
    with_tools: str  # where a tokenizer has another one for conversations with tools
    variables: dict[str, str]  # bos_token and the like
    specials: Specials
    compiled: "jinja2.Template"  # of `source`
    names: dict[str, Any]  # all that it may use, but for the conversation
    markers: tuple[bool, bool]  # it has them, and so has the one with tools

    @staticmethod
    def of(tokenizer: "Tokenizer", specials: Specials | None = None) -> "Template":
        """The template of a tokenizer that has one."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        sources = [tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])]
        plain, with_tools = (_CLOCK + source if "strftime_now" in source else source for source in sources)
        variables = dict(tokenizer.special_tokens_map)
        compiled = _compile_jinja_template(plain)
        names = {**compiled.globals, **variables, "tools": None, "documents": None}
        markers = (_MARKER.search(plain) is not None, _MARKER.search(with_tools) is not None)
        return Template(plain, with_tools, variables, specials or Specials.of(tokenizer), compiled, names, markers)

    def write(self, conversation: "Conversation", until: int | None = None, open_turn: bool = False) -> str:
        """The text of the first `until` messages (None: of all), ready for an answer if `open_turn`."""
        return self._write(conversation, until, open_turn, marked=False)[0]

    def write_marked(self, conversation: "Conversation") -> tuple[str, list[Span] | None]:
        """The text, and which of its characters stand between generation markers (None: the template has none)."""
        return self._write(conversation, None, False, marked=self.markers[bool(conversation.tools)])

    def _write(
        self, conversation: "Conversation", until: int | None, open_turn: bool, marked: bool
    ) -> tuple[str, list[Span] | None]:
        from jinja2 import TemplateError

        render = self._render_plain if conversation.plain else self._render
        try:
            return render(conversation, until, open_turn, marked)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in conversation.turns[:until])
            raise TemplateFault(
                "template.refused",
                f"the tokenizer's chat template refuses this conversation ({roles}): {error}; "
                "reorder or remove turns as the model's template asks",
            ) from None

    def _render(
        self, conversation: "Conversation", until: int | None, open_turn: bool, marked: bool
    ) -> tuple[str, list[Span] | None]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[conversation.turns[:until]],
            tools=conversation.tools,
            chat_template=self.with_tools if conversation.tools else self.source,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=open_turn,
            **self.variables,
        )
        return texts[0], spans[0] if marked else None

    def _render_plain(
        self, conversation: "Conversation", until: int | None, open_turn: bool, marked: bool
    ) -> tuple[str, list[Span] | None]:
        """The same for messages of nothing but text, without what transformers does for others: most of the time."""
        given = {**self.names, "messages": conversation.turns[:until], "add_generation_prompt": open_turn}
        context = self.compiled.new_context(given, shared=True)
        if not marked:
            return "".join(self.compiled.root_render_func(context)), None
        blocks: list[str] = []
        spans: list[Span] = []
        tracker: Any = self.compiled.environment  # transformers adds it
        with tracker.activate_tracker(blocks, spans):
            for block in self.compiled.root_render_func(context):
                blocks += (block,)  # one by one: the tracker looks at them
        return "".join(blocks), spans


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools as chat templates take them."""

    messages: Sequence[Message]
    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    plain: bool  # nothing but roles and texts

    @staticmethod
    def of(messages: Sequence[Message], tools: str = "") -> "Conversation":
        """A value of null is left out, as apply_chat_template does: templates would write `None`."""
        plain = not tools and not any(m.extras for m in messages)
        if plain:
            return Conversation(messages, [{"role": m.role, "content": m.content} for m in messages], None, True)
        turns = [{k: v for k, v in m.for_template().items() if v is not None} for m in messages]
        return Conversation(messages, turns, json.loads(tools) if tools else None, False)

    @property
    def answers(self) -> list[int]:
        """Which of the messages are the assistant's."""
        return [i for i, message in enumerate(self.messages) if message.role == "assistant"]


def starts(template: Template, conversation: Conversation, text: str, learned: Sequence[int]) -> dict[int, int]:
    """Where each assistant turn begins in `text`, by the number of its message.

    Those that the template writes otherwise once they are history are left out; a learned one of them is a fault.
    """
    found = {}
    for index in conversation.answers:
        prompt = template.write(conversation, index, open_turn=True)
        if text.startswith(prompt):
            found[index] = len(prompt)
        elif index in learned:
            at = _common(prompt, text)
            raise TemplateFault(
                "template.generation",
                f"the chat template writes the turns before answer {index} differently when they are a prompt: "
                f"{shorten(prompt[max(0, at - 20) : at + 30])} against {shorten(text[max(0, at - 20) : at + 30])} "
                f"at character {at}, so the model would be trained on prompts that it never meets; correct the "
                "tokenizer's chat_template (its generation prompt must be how an assistant turn begins), or learn "
                "the last answer only (data.supervise: last)",
            )
    return found


def plan(template: Template, messages: Sequence[Message], tools: str = "", supervise: Supervise = "all") -> Plan:
    """Raises TemplateFault when the template refuses the conversation, does not fit it, or drops a part of it."""
    conversation = Conversation.of(messages, tools)
    text, spans = template.write_marked(conversation)
    answers = conversation.answers
    learned = [i for i in (answers if supervise == "all" else answers[-1:]) if messages[i].trained]
    begins = starts(template, conversation, text, learned)
    bounds = [*list(begins.values())[1:], len(text)]
    turns = []
    for (index, start), bound in zip(begins.items(), bounds, strict=True):
        if index not in learned:
            turns.append(Turn(start, bound, learned=False))
            continue
        turn = _turn(template, conversation, index, text, start, bound)
        if messages[index].extras:
            _check_written(conversation, index, text[turn.start : turn.end])
        turns.append(turn if spans is None else _marked(turn, index, spans))
    if conversation.tools and learned:
        _check_tools(conversation.tools, text[: begins[learned[0]]])
    return Plan(text, turns, template.specials.among([m.content for m in messages]))


def _turn(template: Template, conversation: Conversation, index: int, text: str, start: int, bound: int) -> Turn:
    specials = template.specials
    is_last = index == len(conversation.turns) - 1
    closed = text if is_last else template.write(conversation, index + 1)
    calls = bool(conversation.turns[index].get("tool_calls"))
    if calls:
        # Markers of calls may be special tokens, so the end of the turn is the last one. A template that ends the
        # whole text with one more writes the generation prompt in its place.
        written = closed[: _common(closed, template.write(conversation, index + 1, open_turn=True))]
        if text.startswith(written):
            last = specials.last(text, start, len(written))
            return Turn(start, len(written) if last is None else last)
    content = specials.blanked(conversation.messages[index].content.strip())
    if text.startswith(closed):
        end = len(closed)
        blank = specials.blanked(text[start:end])
        # The last such words of the turn: a template may write some itself (a channel's name) before the answer.
        found = (blank.rfind if content else blank.find)(content)
    else:
        # A template may write a turn otherwise once it is history (Qwen3 drops its reasoning): then the turn ends
        # with the first special token behind its content, and what follows is other turns.
        found = specials.blanked(text[start:bound]).find(content)
        behind = start + found + len(content) if found >= 0 else start
        if calls:
            behind = max(behind, text.rfind(_names(conversation.turns[index]["tool_calls"])[-1], start, bound))
        match = specials.pattern and specials.pattern.search(text, behind, bound)
        end = match.end() if match else bound
    return Turn(start, end, start + found + len(content) if found >= 0 and not calls else None)


def _marked(turn: Turn, index: int, spans: Sequence[Span]) -> Turn:
    marks = tuple(
        (max(first, turn.start), min(last, turn.end)) for first, last in spans if first < turn.end and last > turn.start
    )
    if not marks:
        raise TemplateFault(
            "template.mask_empty",
            f"the chat template's {{% generation %}} markers leave out answer {index}, so nothing of it would be "
            "learned; put them around what the assistant says in the tokenizer's chat_template, or remove them",
        )
    return Turn(turn.start, turn.end, turn.content_end, marks)


def _check_written(conversation: Conversation, index: int, said: str) -> None:
    turn = conversation.turns[index]
    missing = [name for name in _names(turn.get("tool_calls") or []) if name not in said]
    if missing:
        raise TemplateFault(
            "template.tools",
            f"the chat template does not write the call of {shorten(missing[0])} in answer {index}, so the model "
            "would not learn it; use a tokenizer whose chat_template supports tool_calls, or write it as 'content'",
        )
    reasoning = str(turn.get("reasoning_content") or "").strip()
    if reasoning and reasoning not in said and index == len(conversation.turns) - 1:  # history may lose its own
        raise TemplateFault(
            "template.reasoning",
            f"the chat template does not write the reasoning of the last answer, {shorten(reasoning)}, so the model "
            "would not learn it; use a tokenizer whose chat_template has reasoning_content, or write it into 'content'",
        )


def _check_tools(tools: Sequence[dict[str, Any]], shown: str) -> None:
    missing = [name for name in _names(tools) if name not in shown]
    if missing:
        raise TemplateFault(
            "template.tools",
            f"the chat template does not write the tool {shorten(missing[0])}, so the model would learn to answer "
            "without knowing it; use a tokenizer whose chat_template supports tools, or remove 'tools' from the row",
        )


def _names(functions: Sequence[dict[str, Any]]) -> list[str]:
    """Of tools, or of calls; they come with and without a `function` around them."""
    return [str((function.get("function") or function).get("name", "")) for function in functions]


def _common(first: str, second: str) -> int:
    """How many characters both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
