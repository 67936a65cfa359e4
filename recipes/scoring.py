"""Exact match by greedy generation: how the recipe judges the base model that it made."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.skills import Row

BATCH_SIZE: Final[int] = 64


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_new_tokens: int = 48
) -> list[str]:
    """The model's greedy answer to the first turn of each row, in the order of the rows."""
    prompts = [
        str(tokenizer.apply_chat_template([row["messages"][0]], tokenize=False, add_generation_prompt=True))
        for row in rows
    ]
    # Prompts of like length share a batch: less padding, hence less time.
    order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
    made: list[str] = [""] * len(rows)
    model.eval()
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        inputs = tokenizer(
            [prompts[i] for i in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            made[index] = text
    return made


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> dict[str, tuple[float, int]]:
    """skill -> (share of answers that are right to the letter, number of rows)."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers(model, tokenizer, rows), strict=True):
        right[row["skill"]].append(answer == row["messages"][1]["content"])
    return {skill: (sum(flags) / len(flags), len(flags)) for skill, flags in right.items()}
