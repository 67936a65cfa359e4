"""Which tokens a log-likelihood is asked of: behind which prompt, as what tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Continuation:
    """Token ids: of what is read (at least one), and of what is judged behind it (at least one)."""

    prompt: list[int]
    answer: list[int]


def continuation(tokenizer: Any, prompt: list[int], text: str | None, choice: str) -> Continuation:
    """A choice behind a prompt, or behind the plain `text` that the prompt is the tokens of.

    Behind a text, both are tokenised together, for a tokenizer may join a space with the word behind it; white space at
    the text's end is the choice's, as lm-evaluation-harness has it. Raises ValueError for a choice of no tokens.
    """
    if text is None:
        answer: list[int] = tokenizer.encode(choice, add_special_tokens=False)
        return Continuation(prompt, _some(answer, choice))
    stripped = text.rstrip()
    context: list[int] = tokenizer.encode(stripped) if stripped != text else prompt
    whole: list[int] = tokenizer.encode(stripped + text[len(stripped) :] + choice)
    return Continuation(whole[: len(context)], _some(whole[len(context) :], choice))


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
