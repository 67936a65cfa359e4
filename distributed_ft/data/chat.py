"""Conversations into token ids and a loss mask, by the tokenizer's own chat template.

Two properties matter more than any other, and both are made to hold, not hoped for:

* *What generation sees is what training saw.* The ids of a rendered prompt are a prefix of the ids of the rendered
  conversation, for every assistant turn. A byte-pair tokenizer may merge the end of a prompt with the first letters
  of the answer; generation can never produce that. Where it happens, the text is cut at the answer's first character.
* *The answer and its end are learned, nothing else.* The supervised tokens are those of the assistant turns up to
  and including the end-of-turn token; the newline that ChatML puts behind it is the template's, not the model's.

Where an assistant turn begins is found by rendering: the text of the messages before it with the generation prompt.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from distributed_ft.data.examples import Example, Message
from distributed_ft.data.files import shorten
from distributed_ft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

T = TypeVar("T")
_BATCH = 512  # conversations per tokenizer call: enough to keep its threads busy, little memory

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


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model sees it; both lists have one entry a token."""

    ids: list[int]
    supervised: list[bool]  # this token is something the model shall say
    ends: bool = True  # every assistant turn is closed by a special token, so generation knows where to stop
    foreign_specials: bool = False  # a message's own text contains special tokens of the tokenizer


@dataclass(frozen=True, slots=True)
class _Plan:
    """The text of a conversation; `cuts[k]:ends[k]` are the characters of its k-th assistant turn."""

    text: str
    cuts: list[int]
    ends: list[int]
    content_ends: list[int | None]  # where the message's own text ends; None: the template rewrote it
    foreign_specials: bool


@dataclass(frozen=True, slots=True)
class _Specials:
    """The tokenizer's special tokens, looked up once: its own properties build a new dictionary at each call."""

    ids: frozenset[int]
    pattern: re.Pattern[str] | None

    @staticmethod
    def of(tokenizer: "Tokenizer") -> "_Specials":
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        texts = sorted(special.values(), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        return _Specials(frozenset(special) | frozenset(tokenizer.all_special_ids), pattern)

    def blanked(self, text: str) -> str:
        """As long as `text`, with nothing to be found in special tokens."""
        return self.pattern.sub(lambda match: "\0" * len(match.group()), text) if self.pattern else text


@dataclass(slots=True)
class _Tokens:
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # character where each token begins, in the whole text


def check_tokenizer(tokenizer: "Tokenizer") -> None:
    """Raises ConfigError when conversations cannot be rendered with this tokenizer."""
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"model.base: {name} has no chat template, so there is no telling how a conversation is written for it; "
            "use the instruct (chat) version of the model, or put a chat_template.jinja into its directory"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"model.base: the tokenizer of {name} cannot tell which characters a token stands for; "
            "add its tokenizer.json (the fast form; transformers' save_pretrained of a fast tokenizer writes it)"
        )


def render(tokenizer: "Tokenizer", messages: Sequence[Message]) -> Rendered:
    """Ids and mask of one conversation. Raises DataError when the template refuses or does not fit it."""
    check_tokenizer(tokenizer)
    specials = _Specials.of(tokenizer)
    plan = _plan(tokenizer, specials, messages)
    return _assemble(tokenizer, specials, plan, _encode(tokenizer, _prefixes(plan)))


def render_prompt(tokenizer: "Tokenizer", messages: Sequence[Message]) -> list[int]:
    """Ids that generation starts from: the messages and the opening of the assistant's turn."""
    check_tokenizer(tokenizer)
    text = _template(tokenizer, messages, open_turn=True)
    cuts = [_start_of_turn(tokenizer, messages, i, text) for i, m in enumerate(messages) if m.role == "assistant"]
    cuts.append(len(text))
    return _join(tokenizer, text, cuts, _encode(tokenizer, [text[:cut] for cut in cuts]))[0].ids


def render_all(tokenizer: "Tokenizer", examples: Sequence[Example]) -> Iterator[Rendered]:
    """`render` of each example in order, many at a time; a DataError names the example's file and line."""
    check_tokenizer(tokenizer)
    specials = _Specials.of(tokenizer)
    for first in range(0, len(examples), _BATCH):
        batch = examples[first : first + _BATCH]
        plans = [_located(example, _plan, tokenizer, specials, example.messages) for example in batch]
        prefixes = [_prefixes(plan) for plan in plans]
        encoded = iter(_encode(tokenizer, [text for texts in prefixes for text in texts]))
        for example, plan, texts in zip(batch, plans, prefixes, strict=True):
            tokens = [next(encoded) for _ in texts]
            yield _located(example, _assemble, tokenizer, specials, plan, tokens)


def _located(example: Example, function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except DataError as error:
        raise DataError(f"{example.path}:{example.line}: {error}") from None


# --- text ----------------------------------------------------------------------------------------------------------


def _template(tokenizer: "Tokenizer", messages: Sequence[Message], open_turn: bool = False) -> str:
    from jinja2 import TemplateError

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        template = tokenizer.get_chat_template()
        stopped = _CLOCK + template if "strftime_now" in template else template
        text = tokenizer.apply_chat_template(
            turns, chat_template=stopped, tokenize=False, add_generation_prompt=open_turn
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise DataError(
            f"the tokenizer's chat template refuses this conversation ({roles}): {error}; "
            "reorder or remove turns as the model's template asks"
        ) from None
    assert isinstance(text, str)
    return text


def _start_of_turn(tokenizer: "Tokenizer", messages: Sequence[Message], index: int, text: str) -> int:
    """Character of `text` where the assistant turn `index` begins, behind the generation prompt."""
    prompt = _template(tokenizer, messages[:index], open_turn=True)
    if not text.startswith(prompt):
        at = next(
            (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text))
        )
        raise DataError(
            f"the chat template writes the turns before answer {index} differently when they are a prompt: "
            f"{shorten(prompt[max(0, at - 20) : at + 30])} against {shorten(text[max(0, at - 20) : at + 30])} "
            f"at character {at}, so the model would be trained on prompts that it never meets; correct the "
            "tokenizer's chat_template (its generation prompt must be how an assistant turn begins)"
        )
    return len(prompt)


def _plan(tokenizer: "Tokenizer", specials: _Specials, messages: Sequence[Message]) -> _Plan:
    text = _template(tokenizer, messages)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    cuts = [_start_of_turn(tokenizer, messages, i, text) for i in turns]
    blank, ends, content_ends = specials.blanked(text), [], list[int | None]()
    for index, start, bound in zip(turns, cuts, [*cuts[1:], len(text)], strict=True):
        content = specials.blanked(messages[index].content.strip())
        closed = text if index == len(messages) - 1 else _template(tokenizer, messages[: index + 1])
        if text.startswith(closed):
            # The last such words of the turn: a template may write some itself (a channel's name) before the answer.
            end = len(closed)
            found = (blank.rfind if content else blank.find)(content, start, end)
        else:
            # A template may write a turn otherwise once it is history (Qwen3 drops its reasoning): then the turn ends
            # with the first special token behind its content, and what follows is other turns.
            found = blank.find(content, start, bound)
            behind = found + len(content) if found >= 0 else start
            match = specials.pattern and specials.pattern.search(text, behind, bound)
            end = match.end() if match else bound
        ends.append(end)
        content_ends.append(found + len(content) if found >= 0 else None)
    foreign = specials.pattern is not None and any(specials.pattern.search(m.content) for m in messages)
    return _Plan(text, cuts, ends, content_ends, foreign)


# --- tokens --------------------------------------------------------------------------------------------------------


def _prefixes(plan: _Plan) -> list[str]:
    return [plan.text[:cut] for cut in [*plan.cuts, len(plan.text)]]


def _encode(tokenizer: "Tokenizer", texts: list[str]) -> list[_Tokens]:
    """The template has written every special token already, so the tokenizer adds none."""
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets: Iterable[Any] = encoded["offset_mapping"]
    return [
        _Tokens(list(ids), [start for start, _ in spans])
        for ids, spans in zip(encoded["input_ids"], offsets, strict=True)
    ]


def _join(tokenizer: "Tokenizer", text: str, cuts: list[int], prefixes: list[_Tokens]) -> tuple[_Tokens, list[int]]:
    """Tokens of `text[:cuts[-1]]`, and how many of them are the tokens of each `text[:cut]`."""
    joined, counts, begin = _Tokens(), [], 0
    for cut, prefix in zip(cuts, prefixes, strict=True):
        if prefix.ids[: len(joined.ids)] == joined.ids:
            joined = prefix
        else:  # the tokenizer merges across the cut: tokenise what is behind it alone
            piece = text[begin:cut]
            tail = _encode(tokenizer, [piece])[0]
            decoded = tokenizer.decode(tail.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if not _says(str(decoded), piece):
                raise DataError(
                    f"the tokenizer joins the end of the prompt with the beginning of the answer, {shorten(piece)}, "
                    "and cannot write the answer alone, so generation could never say what training teaches; "
                    "remove white space at the answer's beginning, or correct the tokenizer's chat_template"
                )
            joined = _Tokens(joined.ids + tail.ids, joined.starts + [begin + start for start in tail.starts])
        counts.append(len(joined.ids))
        begin = cut
    return joined, counts


def _says(decoded: str, piece: str) -> bool:
    """Whether they are the same text and begin alike; some special tokens swallow the white space beside them."""
    return decoded[:1] == piece[:1] and "".join(decoded.split()) == "".join(piece.split())


def _assemble(tokenizer: "Tokenizer", specials: _Specials, plan: _Plan, prefixes: list[_Tokens]) -> Rendered:
    tokens, counts = _join(tokenizer, plan.text, [*plan.cuts, len(plan.text)], prefixes)
    supervised = [False] * len(tokens.ids)
    closed = True
    for turn, first in enumerate(counts[:-1]):
        end, content_end = plan.ends[turn], plan.content_ends[turn]
        span = [position for position in range(first, counts[turn + 1]) if tokens.starts[position] < end]
        closing = [p for p in span if tokens.ids[p] in specials.ids and tokens.starts[p] >= (content_end or 0)]
        closed &= bool(closing)
        if closing:  # the first behind the content: a template may end the whole text as well
            span = span[: span.index(closing[-1 if content_end is None else 0]) + 1]
        # without an end-of-turn token the rest of the turn is all there is to tell that it is over
        for position in span:
            supervised[position] = True
    return Rendered(tokens.ids, supervised, closed, plan.foreign_specials)
