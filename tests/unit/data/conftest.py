"""A tiny byte-level tokenizer in three template styles, and small data sets in the shapes that people have."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distributed_ft.config.schema import DataConfig, ModelConfig, OptimConfig, RunConfig
from distributed_ft.data.store import PreparedData, Rows, TokenStore, write_store

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('only user and assistant turns, please') }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "inst": INST}
_SPECIALS = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
_SPECIALS += ["<|eot_id|>", "<s>", "</s>"]
_CORPUS = ["user assistant system\n\nhello world, the answer is 42\n\n\nyes no [INST] [/INST] what?"] * 5


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    ends = {CHATML: "<|im_end|>", LLAMA3: "<|eot_id|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=ends.get(template or "", "</s>"))
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Template style -> tokenizer; `none` has no template."""
    return {name: make_tokenizer(template) for name, template in {**TEMPLATES, "none": None}.items()}


@pytest.fixture
def tokenizer(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """ChatML."""
    return tokenizers["chatml"]


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, Sequence[Any]], Path]:
    """Writes rows to a JSONL file of that name."""

    def write(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """A run on the given data; `optim` holds further keys."""

    def make(optim: dict[str, Any] | None = None, seed: int = 0, **data: Any) -> RunConfig:
        optimiser = OptimConfig(**{"global_batch_size": 4, "epochs": 2, **(optim or {})})
        return RunConfig(
            name="run", seed=seed, model=ModelConfig(base="base"), data=DataConfig(**data), optim=optimiser
        )

    return make


@pytest.fixture
def make_prepared(tmp_path: Path) -> Callable[..., PreparedData]:
    """Stores of random rows; every token is different, so that a token tells which row it came from."""

    def make(
        lengths: Sequence[Sequence[int]], weights: Sequence[float] | None = None, name: str = "prepared"
    ) -> PreparedData:
        rng = np.random.default_rng(0)
        stores, first = [], 0
        for number, sizes in enumerate(lengths):
            rows = []
            for row, size in enumerate(sizes):
                tokens = np.arange(first, first + size, dtype=np.int32)
                rows.append((f"s{number}r{row}", tokens, rng.random(size) < 0.4))
                first += size
            path = tmp_path / name / f"train-{number}.arrow"
            path.parent.mkdir(exist_ok=True)
            batches = [Rows.of(rows[i : i + 7]) for i in range(0, len(rows), 7)]
            stores.append(TokenStore(path, write_store(path, batches)))
        return PreparedData(tuple(stores), tuple(weights) if weights else None, None, {}, tmp_path / name)

    return make
