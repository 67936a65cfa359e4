"""What the driver asks of whatever answers: a model in this process, in several, or behind a server."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from distributed_ft.evaluation.task import Request, Response


class Engine(Protocol):
    """A base model that can put on one checkpoint after another.

    Which requests are answered together is decided from the requests alone, so that it does not matter who answers
    them, how many do, nor what was answered before.
    """

    @property
    def digest(self) -> str:
        """Identity of the base as it answers."""
        ...

    @property
    def settings(self) -> Mapping[str, str | int]:
        """What, besides model and request, an answer depends on."""
        ...

    @property
    def context(self) -> int | None:
        """Most tokens that prompt and answer may have together; None where nothing bounds them."""
        ...

    def tokens(self, request: Request) -> int:
        """Of its prompt and the longest answer to it."""
        ...

    def answer_tokens(self, answer: str) -> int:
        """How many tokens a model has to write for this answer, the end of the turn aside."""
        ...

    def use(self, weights: Path | None, strength: float = 1.0) -> None:
        """Answer as the checkpoint whose `model/` directory this is, or as the base for None.

        `strength`: what the adapter's difference to the base is multiplied with.

        Raises CheckpointError when the weights do not fit the base, or cannot be scaled.
        """
        ...

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Which requests are answered together, by their places: each batch may be given to `answers` alone, with the
        same answers.

        Raises EvaluationError for a prompt that leaves no room for an answer.
        """
        ...

    def answers(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Response]]]:
        """(place of the batch, its answers in the order of its requests), each batch as it is done; texts up to the end
        of the turn, special tokens left out.

        Raises EvaluationError for logits that are not finite; EngineError when there is nobody left to answer.
        """
        ...
