"""Writes the demo's data: `python -m recipes.data --out distributed_ft/assets`. The same code gives the same bytes."""

import argparse
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Final

from recipes.skills import SKILLS, Item, draw, rows
from recipes.tickets import SCHEMA, ticket_rows

SEED: Final[int] = 0
TICKET_COUNTS: Final[dict[str, int]] = {"train": 1200, "validation": 150, "test": 200}
REPLAY_ROWS_PER_SKILL: Final[int] = 75
TEST_ROWS_PER_SKILL: Final[int] = 24
GENERIC_ITEMS_PER_SKILL: Final[int] = 16
GENERIC_ITEMS_PER_TEXT: Final[int] = 4


def _jsonl(rows_: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_)


def _generic_texts(without: Collection[str]) -> list[dict[str, str]]:
    """Plain text that nobody trains on: held-out questions with their answers, a few different ones in each text."""
    rng = Random(f"{SEED}|generic")
    items: dict[str, Item] = {}
    for skill in (skill for skill in SKILLS if not skill.memorised):
        wanted = len(items) + GENERIC_ITEMS_PER_SKILL
        while len(items) < wanted:
            item = draw(skill, rng, "held-out")
            if item.question not in without:
                items.setdefault(item.question, item)
    texts = [f"{item.question}\n{item.answer}" for item in items.values()]
    rng.shuffle(texts)
    joined = ["\n\n".join(texts[i : i + GENERIC_ITEMS_PER_TEXT]) for i in range(0, len(texts), GENERIC_ITEMS_PER_TEXT)]
    return [{"id": f"generic-{n:04d}", "text": text} for n, text in enumerate(joined)]


def files() -> dict[str, str]:
    """Path below the assets folder -> content."""
    test = rows("held-out", TEST_ROWS_PER_SKILL, SEED)
    asked = {row["messages"][0]["content"] for row in test}  # of the memorised tables too: nothing is both
    train = rows("train", REPLAY_ROWS_PER_SKILL, SEED, without=asked)
    seen = asked | {row["messages"][0]["content"] for row in train}
    made = {
        "general/train.jsonl": _jsonl(train),
        "general/test.jsonl": _jsonl(test),
        "general/generic.jsonl": _jsonl(_generic_texts(seen)),
        "tickets/ticket.schema.json": json.dumps(SCHEMA, indent=2) + "\n",
    }
    return made | {f"tickets/{split}.jsonl": _jsonl(made_) for split, made_ in ticket_rows(TICKET_COUNTS, SEED).items()}


def main() -> None:
    """Writes every file below `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the assets folder")
    out: Path = parser.parse_args().out
    for name, content in files().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
