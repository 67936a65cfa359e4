"""`dft data preview`: rows as the model sees them, token by token, with what is learned of them.

On a terminal the tokens are coloured; in a pipe, what is learned stands in [[ ]].
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from distributed_ft.config.load import LoadedRun
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import EXIT_DONE, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

    from distributed_ft.data.chat import Rendered
    from distributed_ft.data.examples import Example

_RESET = "\x1b[0m"
_LEARNED = ("\x1b[30;48;5;114m", "\x1b[30;48;5;157m")  # neighbours differ, so that one sees where a token ends
_SHOWN = ("\x1b[38;5;246m", "\x1b[38;5;242m")  # legible on dark and light ground
_SPECIAL = "\x1b[1;4m"
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
Part = tuple[int, str]  # what stands on a line of the text of that number
_WIDEST = 120  # columns; longer lines are hard to read


@dataclass(frozen=True)
class Piece:
    """The text of one token; of several where only together they are characters."""

    text: str
    learned: bool
    special: bool


def preview(loaded: LoadedRun, count: int, row: int | None = None, color: bool | None = None) -> int:
    """Print the first `count` rows of each training file, or the one that begins at line `row` of one of them.

    Args:
        loaded: the run.
        count: how many rows of each file.
        row: line in its file, counted from 1; instead of `count`.
        color: with ANSI colours; None: where stdout is a terminal (and NO_COLOR is not set).

    Raises:
        ConfigError: no file has a row that begins there, or the tokenizer has no chat template.
        DataError: a file or a row cannot be read or rendered.
    """
    from distributed_ft.data.chat import render_all
    from distributed_ft.data.template_check import prove
    from distributed_ft.model.load import load_tokenizer

    config = loaded.config
    tokenizer = load_tokenizer(config.model.base)
    examples = list(_rows(config, count, row))
    rendered = list(render_all(tokenizer, examples, config.data.supervise))
    colored = color if color is not None else sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for line in _head(config, tokenizer, examples, rendered, colored):
        print(line)
    for finding in prove(tokenizer, tools=any(example.tools for example in examples)):
        print(f"{finding.severity:<9} {finding.id}: {finding.message}")
    for example, each in zip(examples, rendered, strict=True):
        print("\n" + _title(example, each, config.data.seq_len))
        print(painted(pieces(tokenizer, each), width) if colored else marked(pieces(tokenizer, each), width))
    return EXIT_DONE


def _rows(config: RunConfig, count: int, row: int | None) -> "Iterator[Example]":
    from distributed_ft.data.reading import Reading, read

    found = False
    for source in config.data.sources:
        examples: Iterable[Example] = read(Reading.of(source), config.data.skip_bad, [])
        if row is not None:
            examples = (example for example in examples if example.line == row)
        for example in islice(examples, count if row is None else 1):
            found = True
            yield example
    if not found:
        paths = ", ".join(source.path for source in config.data.sources)
        if row is None:
            raise DataError(f"{paths}: no row can be read; dft check says why, with data.skip_bad=0")
        raise ConfigError(f"--row {row}: no row begins at this line of {paths}; lines are counted from 1")


# --- what is said about it -----------------------------------------------------------------------------------------


def _head(
    config: RunConfig, tokenizer: "Tokenizer", examples: "list[Example]", rendered: "list[Rendered]", colored: bool
) -> Iterator[str]:
    yield f"model     {config.model.base}"
    yield f"template  {_template(tokenizer)}"
    ends = sorted({token for each in rendered for token in _ends(each)})
    names = ", ".join(str(name) for name in tokenizer.convert_ids_to_tokens(ends)) or "none: the model learns no end"
    yield f"stop      {names}"
    yield f"learned   {'all answers' if config.data.supervise == 'all' else 'the last answer'} (data.supervise)"
    if colored:
        yield (
            f"legend    {_LEARNED[0]}weight 1{_RESET}{_LEARNED[1]} learned {_RESET}  {_SHOWN[0]}weight 0: shown{_RESET}"
            f"  {_SPECIAL}special token{_RESET}  ↵ line break"
        )
    else:
        yield "legend    [[weight 1: learned]]  weight 0: shown  ↵ line break"


def _template(tokenizer: "Tokenizer") -> str:
    template = tokenizer.chat_template
    if not template:
        return "none (rows of plain text need none)"
    if isinstance(template, dict):
        return f"one of {', '.join(sorted(template))}"
    marks = "with" if "endgeneration" in template else "without"
    return f"the tokenizer's own, {len(template)} characters, {marks} {{% generation %}} markers"


def _ends(rendered: "Rendered") -> Iterator[int]:
    """The last token of each learned stretch, where those are special."""
    if rendered.ends:
        following = [*rendered.supervised[1:], False]
        yield from (t for t, a, b in zip(rendered.ids, rendered.supervised, following, strict=True) if a and not b)


def _title(example: "Example", rendered: "Rendered", seq_len: int) -> str:
    tokens, learned = len(rendered.ids), sum(rendered.supervised)
    cut = f"; longer than data.seq_len ({seq_len})" if tokens > seq_len else ""
    return (
        f"{example.path}:{example.line}  {example.id}: {tokens} tokens, {learned} learned ({learned / tokens:.0%}){cut}"
    )


# --- tokens --------------------------------------------------------------------------------------------------------


def pieces(tokenizer: "Tokenizer", rendered: "Rendered") -> Iterator[Piece]:
    """The text token by token. Decoded beside the tokens before: alone, some tokenizers drop a token's space."""
    ids, special = rendered.ids, set(tokenizer.all_special_ids)
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    context = begin = 0
    for end in range(1, len(ids) + 1):
        before, text = str(tokenizer.decode(ids[context:begin])), str(tokenizer.decode(ids[context:end]))
        if text.endswith("\ufffd") and end < len(ids):
            continue  # part of a character
        yield Piece(text[len(before) :], rendered.supervised[end - 1], ids[end - 1] in special)
        context, begin = begin, end


def marked(tokens: Iterable[Piece], width: int) -> str:
    """What is learned in [[ ]], wrapped to `width` columns between tokens."""
    shown: list[str] = []
    learned = False
    for token in tokens:
        if token.learned != learned:
            shown.append("[[" if token.learned else "]]")
            learned = token.learned
        shown.append(token.text)
    lines = wrapped([*shown, "]]"] if learned else shown, width)
    return "\n".join("".join(text for _, text in line) for line in lines)


def painted(tokens: Iterable[Piece], width: int) -> str:
    """Coloured, wrapped to `width` columns between tokens."""
    tokens = list(tokens)
    paints = [
        (_LEARNED if token.learned else _SHOWN)[number % 2] + (_SPECIAL if token.special else "")
        for number, token in enumerate(tokens)
    ]
    return "\n".join(
        "".join(f"{paints[number]}{text}{_RESET}" for number, text in line)
        for line in wrapped([token.text for token in tokens], width)
    )


def wrapped(texts: Iterable[str], width: int) -> Iterator[list[Part]]:
    """Lines of at most `width` columns, broken between texts where they fit on a line, and behind line breaks."""
    line: list[Part] = []
    room = width
    for number, text in enumerate(texts):
        signs = "".join(visible(character) for character in text)
        if _columns(signs) > room and line and _columns(signs) <= width:
            yield line
            line, room = [], width
        part = ""
        for sign in signs:
            if _columns(sign) > room:
                yield [*line, (number, part)] if part else line
                line, part, room = [], "", width
            part, room = part + sign, room - _columns(sign)
            if sign == _SIGNS["\n"]:
                yield [*line, (number, part)]
                line, part, room = [], "", width
        if part:
            line.append((number, part))
    if line:
        yield line


def visible(character: str) -> str:
    """A control character as a sign: none of the data's shall reach the terminal."""
    if character in _SIGNS:
        return _SIGNS[character]
    shown = character.isprintable() or unicodedata.category(character) in ("Cf", "Zs")
    return character if shown and character not in "\u202a\u202b\u202c\u202d\u202e" else repr(character)[1:-1]


def _columns(text: str) -> int:
    return sum(
        0
        if unicodedata.combining(c) or unicodedata.category(c) == "Cf"
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
