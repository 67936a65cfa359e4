"""What is shipped, read once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    return Path(__file__).resolve().parents[3] / "distributed_ft" / "assets"


@pytest.fixture(scope="session")
def read_rows(assets: Path) -> Callable[[str], list[dict[str, Any]]]:
    """`read_rows("tickets/test.jsonl")`: the rows of a shipped file."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (assets / name).read_text(encoding="utf-8").splitlines()]

    return read


@pytest.fixture(scope="session")
def scores(assets: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((assets / "base" / "scores.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="session")
def tokenizer(assets: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets / "base")
