"""The shipped tokenizer: any Unicode round-trips, digits stay single, the template marks the answers."""

from typing import Any

import pytest

from recipes.conversations import IGNORED, PairEncoder
from recipes.skills import Item


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "Zoë, 日本語, العربية, 🎉👩‍👧",
        "tabs\tand\n\nnewlines  and   spaces ",
        "\u0000\u00a0\ufffd",
        "Ünïcödé 12,5 €",
        "",
    ],
)
def test_any_unicode_text_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("In 2024 AB-12345 cost 67.89"))
    digits = [token for token in tokens if any(char.isdigit() for char in token)]
    assert digits == list("2024123456789")


def test_the_special_tokens_have_fixed_ids_and_close_a_turn(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")


def test_base_training_encodes_a_pair_as_the_chat_template_renders_it(tokenizer: Any) -> None:
    ids, labels = PairEncoder(tokenizer)(Item("key", "Sort these numbers: 31, 12", "12, 31"))
    messages = [
        {"role": "user", "content": "Sort these numbers: 31, 12"},
        {"role": "assistant", "content": "12, 31"},
    ]
    rendered = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids == rendered["input_ids"]
    assert [label != IGNORED for label in labels] == [bool(flag) for flag in rendered["assistant_masks"]]


def test_the_generation_prompt_is_a_prefix_of_the_rendered_conversation(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "Hi"}], tokenize=False)
    assert whole == prompt + "Hi<|im_end|>\n"
