"""What is trained in a benchmark: the demo's data and settings, on the embedded base or on a larger one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distributed_ft.config.load import load, load_resolved, resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.order import Order
from distributed_ft.data.store import PreparedData, open_prepared
from distributed_ft.model.load import load_tokenizer
from distributed_ft.train import preflight

DEMO = Path(preflight.__file__).parents[1] / "assets" / "demo.yaml"

Base = Literal["shipped", "larger"]
Method = Literal["lora", "full"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Case:
    """A prepared case on disk: `config.json` and `data/`, as a run directory has them."""

    directory: Path

    @property
    def config(self) -> RunConfig:
        return load_resolved(self.directory / "config.json")

    @property
    def data(self) -> PreparedData:
        return open_prepared(self.directory / "data" / "manifest.json")

    @property
    def order(self) -> Order:
        return Order.of(self.config, self.data)


def make_case(
    folder: Path, name: str, base: Base, method: Method, strategy: Strategy, num_processes: int, steps: int
) -> Case:
    """The demo's settings with nothing beside the steps: a constant rate, no validation, one checkpoint at the end."""
    directory = folder / name
    overrides = [
        f"name={name}",
        f"runs_dir={folder / 'runs'}",
        f"strategy.type={strategy}",
        f"optim.max_steps={steps}",
        "optim.schedule=constant",
        "optim.warmup_ratio=0",
        "data.validation=null",
        "evaluation.tasks=[]",
        f"checkpoint.every={steps}",
    ]
    if base == "larger":
        overrides.append(f"model.base={larger_base(folder / 'larger-base')}")
    if method == "full":
        overrides += ["method={type: full}", "optim.lr=5e-4"]
    config = load(DEMO, overrides).config
    (directory / "data").mkdir(parents=True)
    (directory / "config.json").write_text(resolved_json(config))
    preflight.check(config, num_processes, fresh=True).write(directory / "data")
    return Case(directory)


def larger_base(directory: Path) -> Path:
    """A Llama of 5 layers, hidden size 256, random weights (seeded), with the embedded base's tokenizer."""
    if not directory.exists():
        tokenizer = load_tokenizer(str(DEMO.parent / "base"))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory
