"""Rows for the benchmarks of data: made by seeded generators, as JSON Lines of `messages`."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal, assert_never

from recipes import ticket_phrases, words
from recipes.tickets import INSTRUCTION, ticket

Turn = dict[str, str]
Kind = Literal["tickets", "turns", "short"]
_SHORT = (7, 8, 9, 10)  # words of a question and of an answer: about 100 characters together


def write_corpus(path: Path, kind: Kind, num_rows: int, seed: int = 0) -> Path:
    """`num_rows` different rows. tickets: the demo's, about 355 characters; turns: the same, every fourth row a
    conversation of three tickets; short: English words in random order, about 100 characters."""
    rng = Random(f"{seed}|{kind}")
    match kind:
        case "tickets":
            rows = _conversations(rng, every=0)
        case "turns":
            rows = _conversations(rng, every=4)
        case "short":
            rows = _short(rng)
        case _:
            assert_never(kind)
    with path.open("w") as file:
        file.writelines(json.dumps({"messages": row}) + "\n" for row in islice(rows, num_rows))
    return path


def _conversations(rng: Random, every: int) -> Iterator[list[Turn]]:
    seen: set[str] = set()
    number = 0
    while True:
        turns: list[Turn] = []
        for _ in range(3 if every and number % every == 0 else 1):
            text, labels = ticket(rng)
            turns.append({"role": "user", "content": text if turns else f"{INSTRUCTION}\n\n{text}"})
            turns.append({"role": "assistant", "content": labels.as_json()})
        if turns[0]["content"] not in seen:
            seen.add(turns[0]["content"])
            number += 1
            yield turns


def _short(rng: Random) -> Iterator[list[Turn]]:
    source = [Path(str(module.__file__)).read_text() for module in (ticket_phrases, words)]
    known = sorted(set(re.findall(r"\b[a-z]{2,9}\b", " ".join(source))))
    while True:  # a row twice: once in 10^40
        question, answer = (" ".join(rng.choices(known, k=rng.choice(_SHORT))) for _ in range(2))
        yield [
            {"role": "user", "content": f"{question.capitalize()}?"},
            {"role": "assistant", "content": f"{answer.capitalize()}."},
        ]
