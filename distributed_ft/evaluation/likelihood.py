"""Which tokens a log-likelihood is asked of: behind which prompt, as what tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Continuation:
    """Token ids: of what is read (at least one), and of what is judged behind it (at least one)."""

    prompt: list[int]
    answer: list[int]


def continuation(tokenizer: Any, prompt: list[int], choice: str) -> Continuation:
    """A choice behind messages, whose tokens are `prompt`. Raises ValueError for a choice of no tokens."""
    return Continuation(prompt, _some(tokenizer.encode(choice, add_special_tokens=False), choice))


def continuations_of_texts(
    encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str], choices: Sequence[str], start: int
) -> list[Continuation]:
    """Each choice behind its plain text; `start` stands before a choice that has nothing before it.

    Both are tokenised together, for a tokenizer may join a space with the word behind it; white space at the text's end
    is the choice's, as lm-evaluation-harness has it. Raises ValueError for a choice of no tokens.

    Args:
        encode: token ids of texts, with the special tokens that the tokenizer writes around a text.
    """
    contexts = list(dict.fromkeys(text.rstrip() for text in texts))
    wholes = [text + choice for text, choice in zip(texts, choices, strict=True)]
    ids = encode([*contexts, *wholes])
    lengths = dict(zip(contexts, map(len, ids), strict=False))
    found = []
    for text, choice, whole in zip(texts, choices, ids[len(contexts) :], strict=True):
        before = lengths[text.rstrip()] if text.rstrip() else 0
        found.append(Continuation(whole[:before] or [start], _some(whole[before:], choice)))
    return found


def windows(ids: Sequence[int], start: int, most: int) -> list[Continuation]:
    """A text of any length as disjoint windows: each token is judged once, behind as much as fits of what is before.

    Args:
        start: the token that stands before the text.
        most: tokens that the model takes, prompt and answer.
    """
    whole = [start, *ids]
    found = []
    for first in range(1, len(whole), most):
        last = min(first + most, len(whole))
        begin = max(0, last - 1 - most)  # the last window is filled up with what was judged before
        found.append(Continuation(list(whole[begin:first]), list(whole[first:last])))
    return found


def _some(answer: list[int], choice: str) -> list[int]:
    if not answer:
        raise ValueError(f"the choice {choice!r} has no tokens")
    return answer
