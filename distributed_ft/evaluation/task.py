"""What is asked of a model, and how an answer is scored: the seam between the driver and any kind of task.

A task knows nothing of models; an engine knows nothing of scores. Requests and scores are pure functions of a row, so
that two models always answer the same items, and a stored score can be recomputed from its sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from distributed_ft.data.examples import Example, Message

Kind = Literal["task", "general"]


@dataclass(frozen=True)
class Generate:
    """A request for free text: greedy continuation of `messages`, at most `max_new_tokens` tokens."""

    id: str  # of the item, for messages about it
    messages: tuple[Message, ...]
    max_new_tokens: int
    tools: str = ""  # as Example.tools


@dataclass(frozen=True)
class Score:
    """Of one answer: `value` in the task's metric, `further` metrics of the same answer, all in [0, 1]."""

    value: float
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CutOff:
    """References of a task that no answer can reach within `max_new_tokens` tokens."""

    references: int
    of: int
    longest: int  # tokens
    max_new_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.references} of {self.of} references need up to {self.longest} tokens, "
            f"max_new_tokens is {self.max_new_tokens}"
        )


class Task(Protocol):
    """Rows with requests and references, and a pure score.

    `version` goes up whenever the same answer would be scored differently; `digest` covers rows, metric, version and
    answer length, so that two results with the same digest answered the same questions by the same rules. `chance` is
    the expected score of a guess (0 for generated text).
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def metric(self) -> str: ...
    @property
    def chance(self) -> float: ...
    @property
    def version(self) -> int: ...
    @property
    def digest(self) -> str: ...

    def examples(self) -> Sequence[Example]: ...
    def request(self, example: Example) -> Generate: ...
    def score(self, example: Example, response: str) -> Score: ...


def reference(example: Example) -> str:
    """The answer that a model should give: the last assistant turn."""
    return example.messages[-1].content


def question(example: Example) -> tuple[Message, ...]:
    """What a model is shown: everything before the last assistant turn."""
    return example.messages[:-1]
