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
    """A request for free text: a continuation of `messages`, at most `max_new_tokens` tokens.

    Greedy, or `draws` samples at `temperature`, each drawn by a seed of its own: of the item, the draw and `seed`. A
    message of the role TEXT is a prompt as it stands, without a template.
    """

    id: str  # of the item, for messages about it
    messages: tuple[Message, ...]
    max_new_tokens: int
    tools: str = ""  # as Example.tools
    stop: tuple[str, ...] = ()  # the answer ends before the first of them
    draws: int = 1
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Choose:
    """A request for the log-likelihood of each of `choices` as what comes next after `messages`.

    Behind a message of the role TEXT a choice continues the text, white space and all; otherwise it is the assistant's
    turn up to its last word, the end of the turn left out.
    """

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    tools: str = ""


@dataclass(frozen=True)
class Read:
    """A request for the log-likelihood of all of a text; what the model's context does not hold is read by windows."""

    id: str
    text: str


Request = Generate | Choose | Read


@dataclass(frozen=True)
class Response:
    """What a model answered.

    To Generate: `texts`, one a draw. To Choose: one entry a choice in `nats`, `tokens` and `greedy`. To Read: one entry
    of each.
    """

    texts: tuple[str, ...] = ()
    nats: tuple[float, ...] = ()  # log-likelihood, natural logarithm
    tokens: tuple[int, ...] = ()  # that the log-likelihood is the sum over
    greedy: tuple[bool, ...] = ()  # each of its tokens is the most likely one
    judgement: str | None = None  # what a judge wrote of it

    @property
    def text(self) -> str:
        """The first, and mostly only, text."""
        return self.texts[0] if self.texts else ""


@dataclass(frozen=True)
class Score:
    """Of one answer: `value` in the task's metric, `further` metrics of the same answer, all in [0, 1].

    `answer`: what the response was taken to say (a label, a number, a choice), where that is not its whole text.
    """

    value: float
    further: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None


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


Scored = tuple[Example, Response, Score]  # one item, when it is answered


class Task(Protocol):
    """Rows with requests and references, and a pure score.

    `version` goes up whenever the same answer would be scored differently; `digest` covers rows, metric, version and
    answer length, so that two results with the same digest answered the same questions by the same rules. `chance` is
    the expected score of a guess (0 for generated text). `totals` are figures of all answers together that are no mean
    over items (macro-F1, corpus BLEU, perplexity), in any unit.
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
    def request(self, example: Example) -> Request: ...
    def score(self, example: Example, response: Response) -> Score: ...
    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]: ...


def reference(example: Example) -> str:
    """The answer that a model should give: the last assistant turn."""
    return example.messages[-1].content


def question(example: Example) -> tuple[Message, ...]:
    """What a model is shown: everything before the last assistant turn."""
    return example.messages[:-1]
