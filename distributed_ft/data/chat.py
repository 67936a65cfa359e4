"""Conversations into token ids and a loss mask, by the tokenizer's own chat template.

Two properties matter more than any other, and both are made to hold, not hoped for:

* *What generation sees is what training saw.* The ids of a rendered prompt are a prefix of the ids of the rendered
  conversation, for every assistant turn. A byte-pair tokenizer may merge the end of a prompt with the first letters
  of the answer; generation can never produce that. Where it happens, the text is cut at the answer's first character.
* *The answer and its end are learned, nothing else.* The supervised tokens are those of the assistant turns up to
  and including the end-of-turn token; the newline that ChatML puts behind it is the template's, not the model's.

Rows of plain text need no template: all of it is learned, and that it ends.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.files import shorten
from distributed_ft.data.template import Conversation, Plan, Specials, Supervise, Template, Turn, plan, starts
from distributed_ft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

T = TypeVar("T")
_BATCH = 512  # conversations per tokenizer call: enough to keep its threads busy, little memory


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the model sees it; both lists have one entry a token."""

    ids: list[int]
    supervised: list[bool]  # this token is something the model shall say
    ends: bool = True  # every learned turn is closed by a special token, so generation knows where to stop
    foreign_specials: bool = False  # a message's own text contains special tokens of the tokenizer


@dataclass(slots=True)
class _Tokens:
    ids: list[int]
    spans: list[tuple[int, int]]  # characters that each token stands for; ascending


def check_tokenizer(tokenizer: "Tokenizer", template: bool = True) -> None:
    """Raises ConfigError when conversations (or text only, without `template`) cannot be rendered with it."""
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"model.base: {name} has no chat template, so there is no telling how a conversation is written for it; "
            "use the instruct (chat) version of the model, or put a chat_template.jinja into its directory"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"model.base: the tokenizer of {name} cannot tell which characters a token stands for; "
            "add its tokenizer.json (the fast form; transformers' save_pretrained of a fast tokenizer writes it)"
        )


def render(
    tokenizer: "Tokenizer", messages: Sequence[Message], tools: str = "", supervise: Supervise = "all"
) -> Rendered:
    """Ids and mask of one row. Raises DataError when the template refuses or does not fit it."""
    return next(render_all(tokenizer, [Example("", tuple(messages), 0, "", None, "", tools)], supervise))


def render_prompt(tokenizer: "Tokenizer", messages: Sequence[Message], tools: str = "") -> list[int]:
    """Ids that generation starts from: the messages and the opening of the assistant's turn."""
    check_tokenizer(tokenizer)
    template = Template.of(tokenizer)
    conversation = Conversation.of(messages, tools)
    text = template.write(conversation, open_turn=True)
    cuts = list(starts(template, conversation, text, learned=()).values())
    [whole] = _encode(tokenizer, [text])
    return _cut(tokenizer, text, cuts, whole, _Prefixes(tokenizer, template.specials))[0].ids


def render_all(tokenizer: "Tokenizer", examples: Iterable[Example], supervise: Supervise = "all") -> Iterator[Rendered]:
    """`render` of each example in order, many at a time; a DataError names the example's file and line."""
    for is_text, rows in groupby(examples, lambda example: example.messages[0].role == TEXT):
        check_tokenizer(tokenizer, template=not is_text)
        specials = Specials.of(tokenizer)
        template = None if is_text else Template.of(tokenizer, specials)
        while batch := list(islice(rows, _BATCH)):
            if template is None:
                yield from _texts(tokenizer, specials, batch)
            else:
                yield from _chats(tokenizer, template, batch, supervise)


def _texts(tokenizer: "Tokenizer", specials: Specials, examples: Sequence[Example]) -> Iterator[Rendered]:
    texts = [example.answer for example in examples]
    end = tokenizer.eos_token_id
    for text, ids in zip(texts, tokenizer(texts, verbose=False)["input_ids"], strict=True):
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        yield Rendered(ids, [True] * len(ids), end is not None, specials.among([text]))


def _chats(
    tokenizer: "Tokenizer", template: Template, examples: Sequence[Example], supervise: Supervise
) -> Iterator[Rendered]:
    plans = [_located(e, plan, template, e.messages, e.tools, supervise) for e in examples]
    encoded = _encode(tokenizer, [each.text for each in plans])
    prefixes = _Prefixes(tokenizer, template.specials)
    prefixes.learn(
        (each.text, turn.start, whole) for each, whole in zip(plans, encoded, strict=True) for turn in each.turns
    )
    for example, each, whole in zip(examples, plans, encoded, strict=True):
        cuts = [turn.start for turn in each.turns]
        tokens, counts = _located(example, _cut, tokenizer, each.text, cuts, whole, prefixes)
        yield _masked(template.specials, each, tokens, counts)


def _located(example: Example, function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except DataError as error:
        if not example.path:
            raise
        raise DataError(f"{example.path}:{example.line}: {error}") from None


def _encode(tokenizer: "Tokenizer", texts: list[str]) -> list[_Tokens]:
    """The template has written every special token already, so the tokenizer adds none."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [_Tokens(ids, spans) for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]


class _Prefixes:
    """How many tokens of a text are those of its first characters, told without tokenising these anew.

    A tokenizer splits a text at its special tokens first, so the tokens before one have no bearing on what follows:
    the piece between the last of them and the cut (`<|im_start|>assistant` and a line break, in all rows alike) tells.
    """

    def __init__(self, tokenizer: "Tokenizer", specials: Specials) -> None:
        self._tokenizer, self._anchors = tokenizer, specials.anchors
        self._ids: dict[str, list[int]] = {}

    def learn(self, cuts: Iterable[tuple[str, int, _Tokens]]) -> None:
        """Tokenise the pieces before these cuts of texts in one go."""
        pieces = {self._piece(text, cut, whole)[1] for text, cut, whole in cuts}
        self._ids |= zip(pieces, (tokens.ids for tokens in _encode(self._tokenizer, list(pieces))), strict=True)

    def count(self, text: str, cut: int, whole: _Tokens) -> int | None:
        """How many of the text's tokens are those of `text[:cut]`; None: the latter's are others."""
        first, piece = self._piece(text, cut, whole)
        if piece not in self._ids:
            self.learn([(text, cut, whole)])
        ids = self._ids[piece]
        return first + len(ids) if whole.ids[first : first + len(ids)] == ids else None

    def _piece(self, text: str, cut: int, whole: _Tokens) -> tuple[int, str]:
        first = bisect_left(whole.spans, (cut, -1)) - 1
        while first > 0 and whole.ids[first] not in self._anchors:
            first -= 1
        return (first, text[whole.spans[first][0] : cut]) if first > 0 else (0, text[:cut])


def _cut(
    tokenizer: "Tokenizer", text: str, cuts: list[int], whole: _Tokens, prefixes: _Prefixes
) -> tuple[_Tokens, list[int]]:
    """Tokens of the text, and how many of them are the tokens of each `text[:cut]`."""
    counts = []
    for cut in cuts:
        count = prefixes.count(text, cut, whole)
        if count is None:
            return _join(tokenizer, text, cuts, whole)
        counts.append(count)
    return whole, counts


def _join(tokenizer: "Tokenizer", text: str, cuts: list[int], whole: _Tokens) -> tuple[_Tokens, list[int]]:
    """As `_cut`, of a text whose tokens reach across a cut: what is behind it is tokenised alone."""
    joined, counts, begin = _Tokens([], []), [], 0
    for cut, prefix in zip([*cuts, len(text)], [*_encode(tokenizer, [text[:cut] for cut in cuts]), whole], strict=True):
        if prefix.ids[: len(joined.ids)] == joined.ids:
            joined = prefix
        else:
            piece = text[begin:cut]
            [tail] = _encode(tokenizer, [piece])
            decoded = tokenizer.decode(tail.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if not _says(str(decoded), piece):
                raise DataError(
                    f"the tokenizer joins the end of the prompt with the beginning of the answer, {shorten(piece)}, "
                    "and cannot write the answer alone, so generation could never say what training teaches; "
                    "remove white space at the answer's beginning, or correct the tokenizer's chat_template"
                )
            spans = [(begin + first, begin + last) for first, last in tail.spans]
            joined = _Tokens(joined.ids + tail.ids, joined.spans + spans)
        counts.append(len(joined.ids))
        begin = cut
    return joined, counts[:-1]


def _says(decoded: str, piece: str) -> bool:
    """Whether they are the same text and begin alike; some special tokens swallow the white space beside them."""
    return decoded[:1] == piece[:1] and "".join(decoded.split()) == "".join(piece.split())


def _masked(specials: Specials, whole: Plan, tokens: _Tokens, counts: list[int]) -> Rendered:
    supervised = [False] * len(tokens.ids)
    closed = True
    for turn, first, last in zip(whole.turns, counts, [*counts[1:], len(tokens.ids)], strict=True):
        if not turn.learned:
            continue
        last = bisect_left(tokens.spans, (turn.end, -1), first, last)
        closing = _closing(specials, turn, tokens, first, last)
        closed &= closing is not None
        # without an end-of-turn token the rest of the turn is all there is to tell that it is over
        last = last if closing is None else closing + 1
        for begin, end in turn.marks or [(turn.start, turn.end)]:
            low = max(first, bisect_left(tokens.spans, (begin, -1), first, last))
            high = bisect_left(tokens.spans, (end, -1), low, last)
            supervised[low:high] = [True] * (high - low)
        if closing is not None:
            supervised[closing] = True
    return Rendered(tokens.ids, supervised, closed, whole.foreign_specials)


def _closing(specials: Specials, turn: Turn, tokens: _Tokens, first: int, last: int) -> int | None:
    """The token that ends the turn: the first special one behind the content, as a template may end the whole text as
    well; of a turn of tool calls, whose markers may be special tokens, the last one."""
    if turn.content_end is None:
        places: Iterable[int] = range(last - 1, first - 1, -1)
    else:
        places = range(bisect_left(tokens.spans, (turn.content_end, -1), first, last), last)
    return next((place for place in places if tokens.ids[place] in specials.ids), None)
