"""The demo task: labels that follow from the text, no text twice, answers that the schema accepts."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from recipes import mail, ticket_phrases, words
from recipes.tickets import INSTRUCTION, read_labels

Rows = Callable[[str], list[dict[str, Any]]]
SPLITS = {"train": 1200, "validation": 150, "test": 200}


@pytest.mark.parametrize("split", SPLITS)
def test_the_labels_of_every_ticket_can_be_read_from_its_text(split: str, read_rows: Rows) -> None:
    for row in read_rows(f"tickets/{split}.jsonl"):
        question, answer = (message["content"] for message in row["messages"])
        instruction, text = question.split("\n\n", 1)
        assert instruction == INSTRUCTION
        assert read_labels(text).as_json() == answer


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_valid_against_the_shipped_schema(split: str, read_rows: Rows, assets: Path) -> None:
    schema = json.loads((assets / "tickets" / "ticket.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for row in read_rows(f"tickets/{split}.jsonl"):
        validator.validate(json.loads(row["messages"][1]["content"]))


def test_the_splits_have_their_sizes_and_share_no_text(read_rows: Rows) -> None:
    texts = {split: [row["messages"][0]["content"] for row in read_rows(f"tickets/{split}.jsonl")] for split in SPLITS}
    assert {split: len(found) for split, found in texts.items()} == SPLITS
    every = [text for found in texts.values() for text in found]
    assert len(set(every)) == len(every)


def test_every_label_value_is_common_enough_to_learn_and_none_dominates(read_rows: Rows) -> None:
    answers = [json.loads(row["messages"][1]["content"]) for row in read_rows("tickets/train.jsonl")]
    for field in ("category", "priority", "reply_needed"):
        counts = Counter(answer[field] for answer in answers)
        assert min(counts.values()) >= 0.1 * len(answers)
        assert max(counts.values()) <= 0.75 * len(answers)
    assert 0.2 <= sum(answer["order_id"] is None for answer in answers) / len(answers) <= 0.4


def test_conflicting_labels_in_a_text_are_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        read_labels("The lamp does not turn on. I was charged twice for the lamp.")


def _sentences(phrases: object) -> Iterator[str]:
    if isinstance(phrases, str):
        yield " ".join(re.sub(r"\{\w\}", "_", re.sub(r"[^\w{} ]", "", phrases.lower())).split())
    elif isinstance(phrases, dict):
        for below in phrases.values():
            yield from _sentences(below)
    elif isinstance(phrases, tuple):
        for below in phrases:
            yield from _sentences(below)


def test_no_sentence_of_a_ticket_is_one_that_the_base_was_trained_on() -> None:
    tickets = {
        sentence
        for name in dir(ticket_phrases)
        if name.isupper()
        for sentence in _sentences(getattr(ticket_phrases, name))
    }
    trained = {
        *_sentences(words.TOPICS),
        *(s for pool in (mail.MORE, mail.HASTE, mail.REPLY, mail.FILLERS) for s in _sentences(pool)),
    }
    assert len(tickets) > 100
    assert len(trained) > 100
    assert not {sentence for sentence in tickets & trained if sentence}
