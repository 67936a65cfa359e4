"""The rival of every fine-tune: the base model with a few training examples in its prompt."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from distributed_ft.config.schema import DataConfig, Source
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.reading import Reading, read
from distributed_ft.evaluation.task import Read, Request, question


@dataclass(frozen=True)
class FewShot:
    """Examples that stand before every request of a task; `reason` says why they are fewer than asked for."""

    requested: int
    examples: tuple[Example, ...]
    reason: str | None = None


def source_of_examples(config: DataConfig) -> Source:
    """The training data that teaches the task: what has the greatest weight or is seen whole, the first of equals."""

    def share(source: Source) -> float:
        return source.weight or (0.0 if source.fraction is None else -1.0)  # a fraction is what is mixed in

    return max(config.sources, key=share)  # max keeps the first of equals


def rows_to_show(config: DataConfig) -> list[Example]:
    """Its rows that can stand before a question: a conversation in which each turn says something. Raises DataError."""
    rows = read(Reading.of(source_of_examples(config)), config.skip_bad, [])
    return [row for row in rows if all(m.role == "system" or _says(m) for m in row.messages)]


def _says(turn: Message) -> bool:
    return turn.role != TEXT and bool(turn.content.strip())


def choose(train: Sequence[Example], k: int, seed: int, held_out: Sequence[Example]) -> tuple[Example, ...]:
    """At most k training examples, of as many different groups as there are, in an order drawn by `seed`.

    The draw is by content, so that rows added to the file do not reshuffle it. An example that asks what a held-out
    item asks is never taken: its answer would be a leak.
    """
    asked = {_asked(example) for example in held_out}
    drawn = {example.digest: example for example in train if _asked(example) not in asked}
    order = sorted(drawn.values(), key=lambda e: hashlib.sha256(f"{seed} {e.digest}".encode()).digest())
    first_of_group = {example.group: example.digest for example in reversed(order) if example.group is not None}
    varied = [example for example in order if first_of_group.get(example.group or "") == example.digest]
    taken = {example.digest for example in varied}
    others = [example for example in order if example.digest not in taken]
    return tuple([*varied, *others][:k])


def with_examples(request: Request, examples: Sequence[Example]) -> Request:
    """The request with the examples' turns before it. It keeps its own system message; theirs are left out. What is
    asked as plain text has no turns, and stays as it is."""
    if isinstance(request, Read) or request.messages[0].role == TEXT:
        return request
    own = request.messages
    first = next(i for i, message in enumerate(own) if message.role != "system")
    shown = [message for example in examples for message in example.messages if message.role != "system"]
    return replace(request, messages=(*own[:first], *shown, *own[first:]))


def fitted(
    requests: Sequence[Request],
    examples: Sequence[Example],
    requested: int,
    context: int | None,
    length: Callable[[Request], int],
) -> FewShot:
    """The first so many examples with which every request and its longest answer fit into the model's context.

    Args:
        requests: of all items.
        context: tokens the model takes, or None for no bound.
        length: tokens of a prompt and the longest answer to it.
    """
    for count in range(len(examples), -1, -1):
        shown = tuple(examples[:count])
        longest = max(length(with_examples(r, shown)) for r in requests)
        if context is None or longest <= context or count == 0:
            break
    if count < len(examples):
        return FewShot(requested, shown, f"{len(examples)} examples do not fit into the model's {context} tokens")
    if count < requested:
        return FewShot(requested, shown, f"the training data has only {count} that no held-out item asks about")
    return FewShot(requested, shown)


def _asked(example: Example) -> tuple[Message, ...]:
    return tuple(message for message in question(example) if message.role != "system")
