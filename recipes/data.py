"""Writes the demo's data: `python -m recipes.data --out distributed_ft/assets`. The same code gives the same bytes."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from recipes.skills import Row, rows
from recipes.tickets import SCHEMA, ticket_rows

SEED: Final[int] = 0
TICKET_COUNTS: Final[dict[str, int]] = {"train": 1200, "validation": 150, "test": 200}
REPLAY_ROWS_PER_SKILL: Final[int] = 75
TEST_ROWS_PER_SKILL: Final[int] = 24


def _jsonl(rows_: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_)


def files() -> dict[str, str]:
    """Path below the assets folder -> content."""
    test = rows("held-out", TEST_ROWS_PER_SKILL, SEED)
    asked = {row["messages"][0]["content"] for row in test}  # of the memorised tables too: nothing is both
    made = {
        "general/train.jsonl": _jsonl(rows("train", REPLAY_ROWS_PER_SKILL, SEED, without=asked)),
        "general/test.jsonl": _jsonl(test),
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
