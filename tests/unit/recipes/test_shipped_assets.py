"""What is shipped is what the recipe makes, is small, and has the skills it claims."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.data import files
from recipes.skills import SKILLS

Rows = Callable[[str], list[dict[str, Any]]]


@pytest.mark.parametrize("name", sorted(files()))
def test_shipped_data_is_byte_identical_to_what_the_recipe_makes(name: str, assets: Path) -> None:
    assert (assets / name).read_bytes() == files()[name].encode()


def test_replay_and_test_rows_share_no_question(read_rows: Rows) -> None:
    train = {row["messages"][0]["content"] for row in read_rows("general/train.jsonl")}
    assert not [row["id"] for row in read_rows("general/test.jsonl") if row["messages"][0]["content"] in train]


def test_the_general_rows_cover_every_skill(read_rows: Rows) -> None:
    names = {skill.name for skill in SKILLS}
    assert {row["skill"] for row in read_rows("general/train.jsonl")} == names
    assert {row["skill"] for row in read_rows("general/test.jsonl")} == names
    assert 300 <= len(read_rows("general/test.jsonl")) <= 450


def test_the_assets_weigh_at_most_ten_megabytes(assets: Path) -> None:
    assert sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) <= 10 * 1024 * 1024


def test_the_base_scores_at_least_085_on_every_skill_and_has_not_learned_tickets(scores: dict[str, Any]) -> None:
    assert set(scores["skills"]) == {skill.name for skill in SKILLS}
    low = {name: entry for name, entry in scores["skills"].items() if entry["score"] < 0.85}
    assert not low
    assert scores["untrained_tickets"]["score"] <= 0.10


def test_the_shipped_tokenizer_is_the_one_that_the_recipe_trains(tmp_path: Any, assets: Path) -> None:
    from recipes.tokenizer import train_tokenizer

    train_tokenizer(seed=0).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (assets / "base" / "tokenizer.json").read_bytes()


def test_the_base_loads_with_from_pretrained_and_answers(tokenizer: Any, read_rows: Rows, assets: Path) -> None:
    from transformers import AutoModelForCausalLM

    from recipes.scoring import exact_match

    model = AutoModelForCausalLM.from_pretrained(assets / "base")
    assert model.config.max_position_embeddings == 2048
    rows = [row for row in read_rows("general/test.jsonl") if row["skill"] in ("facts", "find_code")]
    assert min(score for score, _ in exact_match(model, tokenizer, rows).values()) >= 0.8  # type: ignore[arg-type]
