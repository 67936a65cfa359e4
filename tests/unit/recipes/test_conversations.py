"""Base training's batches: whole pairs, answers only, nothing held out, lengths up to a prompt full of examples."""

from random import Random
from typing import Any

import pytest
import torch

from recipes.base_model import Settings, answer_loss, learning_rate, new_model, step_batch
from recipes.conversations import IGNORED, STAGES, PairEncoder, batch, conversation, drill_batch
from recipes.tokenizer import PAD_ID

FIRST, LAST = STAGES[0], STAGES[-1]


def test_the_same_random_source_gives_the_same_batch(tokenizer: Any) -> None:
    first, second = (batch(Random(5), PairEncoder(tokenizer), LAST, PAD_ID) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_only_answers_are_supervised_and_padding_never_is(tokenizer: Any) -> None:
    ids, labels = batch(Random(5), PairEncoder(tokenizer), LAST, PAD_ID)
    supervised = labels != IGNORED
    assert torch.equal(ids[supervised], labels[supervised])
    assert not (supervised & (ids == tokenizer.pad_token_id)).any()
    assert 0.05 < supervised.float().mean() < 0.5


def test_conversations_reach_the_length_of_a_few_shot_prompt_and_hold_several_pairs(tokenizer: Any) -> None:
    longest = max(shape.max_tokens for shape in LAST.shapes)
    ids, _ = conversation(Random(1), PairEncoder(tokenizer), LAST.shares, longest)
    assert 900 <= len(ids) <= longest
    assert ids.count(tokenizer.eos_token_id) >= 8


def test_a_batch_of_a_shape_of_one_token_holds_single_questions(tokenizer: Any) -> None:
    for seed in range(10):
        ids, _ = conversation(Random(seed), PairEncoder(tokenizer), FIRST.shares, FIRST.shapes[0].max_tokens)
        assert ids.count(tokenizer.eos_token_id) == 2


def test_a_drill_row_answers_with_the_question(tokenizer: Any) -> None:
    ids, labels = drill_batch(Random(0), PairEncoder(tokenizer), len(tokenizer), 5, PAD_ID)
    for row, answers in zip(ids.tolist(), labels.tolist(), strict=True):
        answer = [label for label in answers if label not in (IGNORED, tokenizer.eos_token_id)]
        assert 1 <= len(answer) <= 5
        assert all(row.count(token) >= 2 for token in answer)


def test_the_answer_loss_equals_the_loss_that_transformers_computes(tokenizer: Any) -> None:
    model = new_model(Settings(hidden_size=32, intermediate_size=64, num_layers=1), tokenizer)
    ids, labels = batch(Random(2), PairEncoder(tokenizer), LAST, PAD_ID)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids, labels=labels, use_cache=False).loss
    torch.testing.assert_close(answer_loss(model, ids, labels), expected, rtol=1e-3, atol=1e-3)


def test_a_conversation_gives_the_same_logits_alone_and_padded_beside_others(tokenizer: Any) -> None:
    model = new_model(Settings(hidden_size=32, intermediate_size=64, num_layers=2), tokenizer).eval()
    ids, _ = batch(Random(3), PairEncoder(tokenizer), LAST, PAD_ID)
    row = min(range(len(ids)), key=lambda index: int((ids[index] != PAD_ID).sum()))
    length = int((ids[row] != PAD_ID).sum())
    with torch.inference_mode():
        together = model(input_ids=ids, use_cache=False).logits[row, :length]
        alone = model(input_ids=ids[row : row + 1, :length], use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_rate_goes_up_stays_comes_down_in_two_parts_and_has_two_refreshes_that_end_near_zero() -> None:
    settings = Settings(
        steps=500,
        warmup_steps=10,
        decay_start=200,
        decay_steps=100,
        low_ratio=0.1,
        final_steps=50,
        learning_rate=1.0,
        refresh_start=400,
        mail_start=450,
        refresh_rate=0.5,
    )
    rates = [learning_rate(settings, step) for step in range(1, 501)]
    assert rates[0] == 0.1
    assert rates[9:200] == [1.0] * 191
    assert rates[249] == pytest.approx(0.51)
    assert rates[299:350] == [0.1] * 51
    assert rates[399] == pytest.approx(0.002)
    for first in (400, 450):
        assert max(rates[first : first + 50]) == pytest.approx(0.5, rel=0.2)
        assert rates[first + 49] == pytest.approx(0.01)


def test_the_curriculum_starts_with_the_drill_and_ends_with_long_conversations(tokenizer: Any) -> None:
    settings, encode = Settings(drill_steps=10), PairEncoder(tokenizer)

    def longest(step: int) -> int:
        return max(step_batch(settings, step, Random(seed), encode, len(tokenizer))[0].shape[1] for seed in range(60))

    assert longest(1) < 20
    assert longest(FIRST.last_step) <= 128
    assert longest(settings.steps) > 900
