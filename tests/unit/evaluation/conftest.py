"""A tiny chat model that really knows a few things, with checkpoints that learned and forgot: made once, in seconds."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.chat import render
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import read_examples
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.publishing import publish, staging

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERAL = {"upper": ["cat", "dog", "sun"], "twice": ["ab", "xy", "no"], "last": ["one", "two", "ten"]}
PEOPLE = ["Ann", "Bob", "Cid", "Dee", "Eve", "Fay"]
SCHEMA = {"type": "object", "required": ["name", "vip"], "properties": {"name": {"type": "string"}}}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(identity: str, group: str, request: str, answer: str) -> dict[str, object]:
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": identity, "skill": group, "messages": turns}


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """skills.jsonl (general), people.jsonl (a JSON task), examples.jsonl (to show), person.schema.json."""
    folder = tmp_path_factory.mktemp("rows")
    answers = {"upper": str.upper, "twice": lambda w: w + w, "last": lambda w: w[-1]}
    write_rows(
        folder / "skills.jsonl",
        [row(f"{s}-{w}", s, f"{s} {w}", answers[s](w)) for s, words in GENERAL.items() for w in words],
    )
    person = [row(p, "vip" if p < "D" else "plain", f"who is {p}?", person_json(p)) for p in PEOPLE]
    write_rows(folder / "people.jsonl", person)
    shown = [row(p, "vip" if p < "D" else "plain", f"who is {p}?", person_json(p)) for p in ("Al", "Cy", "Flo", "Gus")]
    write_rows(folder / "examples.jsonl", shown)
    # LoRA leaves the embeddings as they are, so the base has to have used the letters before
    practice = [row(f"spell {p}", "spell", f"spell {p}", p) for p in PEOPLE]
    practice += [row(f"form {v}", "form", f"form {v}", json.dumps({"name": "", "vip": v})) for v in (True, False)]
    write_rows(folder / "practice.jsonl", practice)
    (folder / "person.schema.json").write_text(json.dumps(SCHEMA))
    return folder


def person_json(name: str) -> str:
    return json.dumps({"name": name, "vip": name < "D"})


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["user assistant name vip true false"] * 4,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[0], pad_token=special[0])
    wrapped.add_special_tokens({"additional_special_tokens": special[1:]})
    wrapped.chat_template = CHATML
    return wrapped


def fit(model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: list[Example], steps: int, lr: float) -> None:
    """Learn the rows by heart: all of them in each step, padded, loss on the answers."""
    rendered = [render(tokenizer, example.messages) for example in rows]
    width = max(len(r.ids) for r in rendered)
    ids = torch.tensor([r.ids + [0] * (width - len(r.ids)) for r in rendered])
    mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in rendered])
    flags = torch.tensor([r.supervised + [False] * (width - len(r.ids)) for r in rendered])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.where(flags, ids, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def tiny_config(vocabulary: int, hidden: int = 32) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, files: Path) -> Path:
    """Knows the general skills by heart, and nobody."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(len(tokenizer)))
    rows = [example for name in ("skills", "practice") for example in read_examples(files / f"{name}.jsonl")]
    fit(model, tokenizer, rows, steps=200, lr=5e-3)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(
    tmp_path_factory: pytest.TempPathFactory, base: Path, tokenizer: PreTrainedTokenizerFast, files: Path
) -> dict[str, Path]:
    """`kept` learned the people beside the skills, `forgot` only the people, `untrained` nothing."""
    folder = tmp_path_factory.mktemp("adapters")
    people, skills = read_examples(files / "people.jsonl"), read_examples(files / "skills.jsonl")
    for name, rows, steps in (("kept", people + skills, 120), ("forgot", people, 60), ("untrained", people, 0)):
        torch.manual_seed(1)
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        fit(adapted, tokenizer, rows, steps, lr=1e-2)
        adapted.save_pretrained(folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def full_weights(
    tmp_path_factory: pytest.TempPathFactory, base: Path, tokenizer: PreTrainedTokenizerFast, files: Path
) -> Path:
    """A full fine-tune on the people alone, with a rate that ruins the skills."""
    torch.manual_seed(2)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    fit(model, tokenizer, read_examples(files / "people.jsonl"), steps=60, lr=5e-3)
    folder = tmp_path_factory.mktemp("full")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(base: Path) -> TransformersEngine:
    return TransformersEngine(str(base), "fp32", batch_size=4)


MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(tmp_path: Path, base: Path, files: Path) -> MakeRun:
    """make_run({step: model directory}, **changes to the evaluation section) -> a run directory."""

    def make(checkpoints: dict[int, Path], **evaluation: object) -> RunDirectory:
        task = {
            "name": "people",
            "path": str(files / "people.jsonl"),
            "metric": "json_fields",
            "schema": str(files / "person.schema.json"),
            "max_new_tokens": 24,
        }
        section = {
            "tasks": [task],
            "general": [str(files / "skills.jsonl")],
            "few_shot": 2,
            "generic_text": None,
            "batch_tokens": 0,
        }
        section |= evaluation
        config = RunConfig.model_validate_json(
            json.dumps(
                {
                    "name": "run",
                    "runs_dir": str(tmp_path),
                    "model": {"base": str(base), "dtype": "fp32"},
                    "data": {"train": str(files / "examples.jsonl")},
                    "evaluation": section,
                }
            )
        )
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        run.config.write_text(resolved_json(config))
        for step, model in checkpoints.items():
            partial = staging(run, step)
            shutil.copytree(model, partial / "model")
            publish(run, partial, step, world_size=1)
        return run

    return make
