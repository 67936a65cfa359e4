"""Instructions whose following a program can tell, without a reference and without a language."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed_ft.data.examples import Example
from distributed_ft.data.files import shorten, suggestion
from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Response, Score, Scored
from distributed_ft.evaluation.tasks.rule import FreeText, listed, place

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_FENCED = re.compile(r"\A\s*```\w*\n(.*)\n\s*```\s*\Z", re.DOTALL)


def _words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _sentences(text: str) -> int:
    """Pieces with a word in them, between ends of a sentence and what follows them."""
    return sum(bool(re.search(r"\w", piece)) for piece in re.split(r"[.!?]+(?:\s+|$)|[。！？]+|\n+", text))


def _paragraphs(text: str) -> int:
    return sum(bool(piece.strip()) for piece in re.split(r"\n\s*\n|^\s*\*\*\*\s*$", text, flags=re.MULTILINE))


def _is_json(text: str) -> bool:
    fenced = _FENCED.match(text)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


# Rules by what their argument is. The text that they are asked of has no white space at its ends, and is not empty.
_FLAGS: dict[str, Callable[[str], bool]] = {
    "json": _is_json,
    "no_commas": lambda text: not re.search("[,،，、]", text),
    "all_caps": str.isupper,
    "all_lowercase": str.islower,
    "quoted": lambda text: len(text) > 1 and text[0] in '"“' and text[-1] in '"”',
    "title": lambda text: re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text) is not None,
    "one_line": lambda text: "\n" not in text,
}
_COUNTED: dict[str, Callable[[str], int]] = {
    "words": _words,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "characters": len,
    "lines": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
    "bullets": lambda text: len(_BULLET.findall(text)),
    "placeholders": lambda text: len(re.findall(r"\[[^\[\]\n]+\]", text)),
    "highlights": lambda text: len(re.findall(r"\*\*[^*\n]*\w[^*\n]*\*\*|(?<!\*)\*[^*\n]*\w[^*\n]*\*(?!\*)", text)),
}
_COUNTS: dict[str, Callable[[str, int], bool]] = {
    **{name: lambda text, n, count=count: count(text) == n for name, count in _COUNTED.items()},  # type: ignore[misc]
    **{f"min_{name}": lambda text, n, count=count: count(text) >= n for name, count in _COUNTED.items()},  # type: ignore[misc]
    **{f"max_{name}": lambda text, n, count=count: count(text) <= n for name, count in _COUNTED.items()},  # type: ignore[misc]
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "starts_with": lambda text, start: text.casefold().startswith(start.casefold()),
    "ends_with": lambda text, end: text.casefold().endswith(end.casefold()),
    "postscript": lambda text, mark: re.search(rf"^\s*{re.escape(mark)}", text, re.M | re.I) is not None,
}
_LISTS: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "must_contain": lambda text, words: all(_times(text, word) for word in words),
    "must_not_contain": lambda text, words: not any(_times(text, word) for word in words),
    "one_of": lambda text, options: any(option.casefold() == text.casefold() for option in options),
}
_FREQUENCY = "frequency"  # {word: …, min: 2} and, or, {max: 3}
NAMES = (*_FLAGS, *_COUNTS, *_TEXTS, *_LISTS, _FREQUENCY)


@dataclass(frozen=True)
class Instruction:
    """One rule with its argument."""

    name: str
    argument: Any = True

    def followed(self, answer: str) -> bool:
        """An empty answer follows nothing, as in IFEval."""
        text, name, argument = answer.strip(), self.name, self.argument
        if not text:
            return False
        if name in _FLAGS:
            return _FLAGS[name](text) is argument
        if name in _COUNTS:
            return _COUNTS[name](text, argument)
        if name in _TEXTS:
            return _TEXTS[name](text, argument)
        if name in _LISTS:
            return _LISTS[name](text, argument)
        times = _times(text, argument["word"])
        return bool(argument.get("min", 0) <= times <= argument.get("max", times))


def instruction(entry: Any) -> Instruction:
    """`no_commas`, or {max_words: 50}. Raises ValueError that says what is wrong, with a remedy."""
    name, argument = entry, True
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, argument),) = entry.items()
    if not isinstance(name, str) or name not in NAMES:
        hint = suggestion((name,), NAMES) if isinstance(name, str) else ""
        raise ValueError(f"{shorten(entry)} is no instruction{hint}; they are {', '.join(NAMES)}")
    wanted = _fault(name, argument)
    if wanted:
        raise ValueError(f"{name}: {shorten(argument)} is not {wanted}")
    return Instruction(name, argument)


def _fault(name: str, argument: Any) -> str | None:
    """What the argument of a rule should be, if it is not."""
    if name in _FLAGS:
        return None if isinstance(argument, bool) else "true or false"
    if name in _COUNTS:
        return None if _is_count(argument) else f"a whole number, as in {{{name}: 3}}"
    if name in _TEXTS:
        return None if _is_text(argument) else f'a text, as in {{{name}: "P.S."}}'
    if name in _LISTS:
        right = isinstance(argument, list) and len(argument) > 0 and all(map(_is_text, argument))
        return None if right else f'a list of texts, as in {{{name}: ["yes"]}}'
    bounds = {key: value for key, value in argument.items() if key != "word"} if isinstance(argument, dict) else {}
    right = bool(bounds) and bounds.keys() <= {"min", "max"} and all(map(_is_count, bounds.values()))
    return None if right and _is_text(argument.get("word")) else f'{{{name}: {{word: "tea", min: 2, max: 3}}}}'


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


@dataclass(frozen=True)
class Instructions(FreeText):
    """1 if every instruction of the item is followed (prompt-level strict), else 0; `instruction_level`: the share.

    As in IFEval (Zhou et al. 2023, arXiv:2311.07911), with its rules that depend on no language.
    """

    column: str = "instructions"
    metric: str = "instructions"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        return {"max_new_tokens": self.max_new_tokens, "rule": [self.column]}

    @property
    def open_ended(self) -> bool:
        return True

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a row without instructions, or with one that cannot be told."""
        for row in rows:
            self._instructions(row)

    def score(self, example: Example, response: Response) -> Score:
        followed = [rule.followed(response.text) for rule in self._instructions(example)]
        return Score(float(all(followed)), {"instruction_level": sum(followed) / len(followed)})

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """`instruction_accuracy`: share of all items' instructions that are followed (instruction-level strict)."""
        followed = [rule.followed(r.text) for example, r, _ in scored for rule in self._instructions(example)]
        return {"instruction_accuracy": sum(followed) / len(followed)}

    def _instructions(self, row: Example) -> list[Instruction]:
        try:
            return [instruction(entry) for entry in listed(row, self.column, self.metric, "instructions_column")]
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{place(row)}: the column {self.column!r}: {error}") from None
