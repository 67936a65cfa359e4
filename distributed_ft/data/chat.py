"""Conversations into token ids and a loss mask, by the tokenizer's own chat template.

Two properties matter more than any other, and both are made to hold, not hoped for:

* *What generation sees is what training saw.* The ids of a rendered prompt are a prefix of the ids of the rendered
  conversation, for every assistant turn. A byte-pair tokenizer may merge the end of a prompt with the first letters
  of the answer; generation can never produce that. Where it happens, the text is cut at the answer's first character.
* *The answer and its end are learned, nothing else.* The supervised tokens are those of the assistant turns up to
  and including the end-of-turn token; the newline that ChatML puts behind it is the template's, not the model's.

Rows of plain text need no template: all of it is learned, and that it ends.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, count, groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.files import shorten
from distributed_ft.data.template import Conversation, Plan, Specials, Supervise, Template, Turn, plan, starts
from distributed_ft.data.word_memo import WordMemo
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
    return next(render_all(tokenizer, [Example("", tuple(messages), 0, "", None, tools)], supervise))


def render_prompt(tokenizer: "Tokenizer", messages: Sequence[Message], tools: str = "") -> list[int]:
    """Ids that generation starts from: the messages and the opening of the assistant's turn."""
    check_tokenizer(tokenizer)
    template = Template.of(tokenizer)
    conversation = Conversation.of(messages, tools)
    text = template.write(conversation, open_turn=True)
    cuts = list(starts(template, conversation, text, learned=()).values())
    return _join(tokenizer, text, cuts)[0].ids


def render_all(
    tokenizer: "Tokenizer", examples: Iterable[Example], supervise: Supervise = "all", memo: WordMemo | None = None
) -> Iterator[Rendered]:
    """`render` of each example in order, many at a time; a DataError names the example's file and line.

    `memo`: the tokenizer's, for many rows; it changes nothing but the time.
    """
    for is_text, rows in groupby(examples, lambda example: example.messages[0].role == TEXT):
        check_tokenizer(tokenizer, template=not is_text)
        specials = Specials.of(tokenizer)
        template = None if is_text else Template.of(tokenizer, specials)
        while batch := list(islice(rows, _BATCH)):
            if template is None:
                yield from _texts(tokenizer, specials, batch)
            else:
                yield from _chats(tokenizer, template, batch, supervise, memo)


def _texts(tokenizer: "Tokenizer", specials: Specials, examples: Sequence[Example]) -> Iterator[Rendered]:
    texts = [example.answer for example in examples]
    end = tokenizer.eos_token_id
    for text, ids in zip(texts, tokenizer(texts, verbose=False)["input_ids"], strict=True):
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        yield Rendered(ids, [True] * len(ids), end is not None, specials.among([text]))


def _chats(
    tokenizer: "Tokenizer",
    template: Template,
    examples: Sequence[Example],
    supervise: Supervise,
    memo: WordMemo | None,
) -> Iterator[Rendered]:
    plans = [_located(e, plan, template, e.messages, e.tools, supervise) for e in examples]
    for example, each, quick in zip(examples, plans, _quickly(tokenizer, template.specials, plans, memo), strict=True):
        yield quick or _located(example, _exact, tokenizer, template.specials, each)


def _quickly(
    tokenizer: "Tokenizer", specials: Specials, plans: Sequence[Plan], memo: WordMemo | None
) -> Iterator[Rendered | None]:
    anchors = _Anchors.of(tokenizer)
    if anchors is None:
        yield from [None] * len(plans)
        return
    anchored = [_Anchored.of(anchors, each.text) for each in plans]
    openings = [[at.before(turn.start) for turn in each.turns] for each, at in zip(plans, anchored, strict=True)]
    pieces = list({piece for of_row in openings for _, piece in of_row})
    encoded = _ids(tokenizer, [*pieces, *(each.text for each in plans)], memo)
    known = dict(zip(pieces, encoded, strict=False))
    for each, at, of_row, ids in zip(plans, anchored, openings, encoded[len(pieces) :], strict=True):
        yield _quick(specials, anchors, each, at, [(anchor, known[piece]) for anchor, piece in of_row], ids)


def _located(example: Example, function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except DataError as error:
        if not example.path:
            raise
        raise DataError(f"{example.path}:{example.line}: {error}") from None


def _ids(tokenizer: "Tokenizer", texts: list[str], memo: WordMemo | None) -> list[list[int]]:
    """Without the characters of tokens, which are most of the work."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    known = [None if memo is None else memo.ids(text) for text in texts]
    others = [text for text, ids in zip(texts, known, strict=True) if ids is None]
    encoded = iter(backend.encode_batch_fast(others, add_special_tokens=False))
    return [next(encoded).ids if ids is None else ids for ids in known]


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


@dataclass(frozen=True, slots=True)
class _Anchors:
    """The tokens that a text is split at before anything else, so that what stands before one of them has no bearing on
    the tokens behind it; `pattern` finds them as the tokenizer does."""

    numbers: dict[str, int]
    ids: frozenset[int]
    pattern: re.Pattern[str]

    @staticmethod
    def of(tokenizer: "Tokenizer") -> "_Anchors | None":
        """None: there are none, or where they match depends on what is beside them."""
        added = {
            token.content: number for number, token in tokenizer.added_tokens_decoder.items() if not token.normalized
        }
        alone = any(token.single_word for token in tokenizer.added_tokens_decoder.values())
        if not added or alone or tokenizer.split_special_tokens:
            return None
        return _Anchors(
            added, frozenset(added.values()), re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
        )


@dataclass(frozen=True, slots=True)
class _Anchored:
    """Where anchors stand in a text: `chars[i]` is where the i-th begins, `numbers[i]` its token."""

    text: str
    chars: list[int]
    numbers: list[int]

    @staticmethod
    def of(anchors: _Anchors, text: str) -> "_Anchored":
        found = list(anchors.pattern.finditer(text))
        return _Anchored(text, [m.start() for m in found], [anchors.numbers[m.group()] for m in found])

    def before(self, cut: int) -> tuple[int, str]:
        """Which anchor is the last to begin before the character (-1: none), and the text from there to it."""
        last = bisect_left(self.chars, cut) - 1
        return last, self.text[self.chars[last] if last >= 0 else 0 : cut]


def _quick(
    specials: Specials,
    anchors: _Anchors,
    whole: Plan,
    at: _Anchored,
    openings: Sequence[tuple[int, list[int]]],
    ids: list[int],
) -> Rendered | None:
    """What `_exact` gives, told by the whole's tokens and those of what stands before each turn; None: it cannot be.

    `openings`: of each turn, the last anchor before it, and the tokens from there to it.
    """
    places = list(compress(count(), map(anchors.ids.__contains__, ids)))
    if [ids[place] for place in places] != at.numbers:
        return None
    supervised = [False] * len(ids)
    for turn, (anchor, opening) in zip(whole.turns, openings, strict=True):
        first = places[anchor] if anchor >= 0 else 0
        start = first + len(opening)
        if ids[first:start] != opening:
            return None
        if not turn.learned:
            continue
        behind = turn.start if turn.content_end is None else turn.content_end
        closing = [
            i
            for i in range(bisect_left(at.chars, behind), bisect_left(at.chars, turn.end))
            if at.numbers[i] in specials.ids
        ]
        if not closing:
            return None
        end = closing[-1 if turn.content_end is None else 0]
        if turn.marks and (turn.marks[0][0] > turn.start or turn.marks[0][1] < at.chars[end]):
            return None
        supervised[start : places[end] + 1] = [True] * (places[end] + 1 - start)
    return Rendered(ids, supervised, True, whole.foreign_specials)


def _exact(tokenizer: "Tokenizer", specials: Specials, whole: Plan) -> Rendered:
    return _masked(specials, whole, *_join(tokenizer, whole.text, [turn.start for turn in whole.turns]))


def _join(tokenizer: "Tokenizer", text: str, cuts: list[int]) -> tuple[_Tokens, list[int]]:
    """Tokens of the text, and how many of them are the tokens of each `text[:cut]`.

    Where a token would reach across a cut, what is behind it is tokenised alone.
    """
    joined, counts, begin = _Tokens([], []), [], 0
    cuts = [*cuts, len(text)]
    for cut, prefix in zip(cuts, _encode(tokenizer, [text[:cut] for cut in cuts]), strict=True):
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
            low = bisect_left(tokens.spans, (begin, -1), first, last)
            if low > first and tokens.spans[low - 1][1] > begin:  # a token across the mark's beginning
                low -= 1
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
