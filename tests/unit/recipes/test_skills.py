"""The skill generators: seeded, held out by content, right."""

from random import Random

import pytest

from recipes.skills import SKILLS, Skill, draw, is_held_out, rows

HELD_OUT_SKILLS = [skill for skill in SKILLS if not skill.memorised]
by_name = pytest.mark.parametrize("skill", HELD_OUT_SKILLS, ids=lambda skill: skill.name)


def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others() -> None:
    assert rows("train", 20, seed=3) == rows("train", 20, seed=3)
    assert rows("train", 20, seed=3) != rows("train", 20, seed=4)


def test_there_are_at_least_ten_skills_with_several_phrasings_each() -> None:
    assert len(SKILLS) >= 10
    for skill in SKILLS:
        openings = {skill.make(Random(seed)).question[:4] for seed in range(200)}
        assert len(openings) >= 3, skill.name


@by_name
def test_no_content_is_in_both_splits(skill: Skill) -> None:
    rng = Random(0)
    train = {draw(skill, rng, "train").key for _ in range(500)}
    held_out = {draw(skill, rng, "held-out").key for _ in range(200)}
    assert not train & held_out
    assert all(is_held_out(skill, key) for key in held_out)


def test_addition_holds_out_whole_operand_pairs_and_answers_are_right() -> None:
    addition = next(skill for skill in SKILLS if skill.name == "addition")
    for seed in range(300):
        item = draw(addition, Random(seed), "held-out")
        a, b = map(int, item.key.split("+"))
        assert str(a) in item.question
        assert item.answer == str(a + b)


def test_sorting_and_maximum_answers_follow_from_the_numbers_asked_about() -> None:
    for row in rows("held-out", 50, seed=0):
        question, answer = (message["content"] for message in row["messages"])
        if row["skill"] in ("sorting", "maximum"):
            numbers = [int(part.strip(".?:,")) for part in question.split() if part.strip(".?:,").isdigit()]
            expected = ", ".join(map(str, sorted(numbers))) if row["skill"] == "sorting" else str(max(numbers))
            assert answer == expected


def test_a_memorised_table_is_asked_as_it_was_learned() -> None:
    assert {skill.name for skill in SKILLS if skill.memorised} == {"facts", "classify"}
    facts = next(skill for skill in SKILLS if skill.name == "facts")
    rng = Random(0)
    learned = {draw(facts, rng, "train").question for _ in range(5000)}
    assert {draw(facts, rng, "held-out").question for _ in range(100)} <= learned
