"""Tiny models of several architectures in Hugging Face format, rows for them, and run configurations."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from distributed_ft.artifacts import RunDirectory, write_atomic
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 264  # 256 bytes, the special tokens, and room so that it divides by 8
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "gpt_neox": {"model_type": "gpt_neox"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": {"model_type": "gptj", "rotary_dim": 4},
    "apertus": {"model_type": "apertus"},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
}
ARCHITECTURES["gemma2"] |= {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML)


def make_model(architecture: str, **overrides: Any) -> Any:
    """A randomly initialised causal LM in fp32; weights large enough for losses that differ between tokens."""
    settings = {**SIZES, **ARCHITECTURES[architecture], "vocab_size": VOCAB, "initializer_range": 0.2}
    settings |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, **overrides}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():  # norms and biases start at 0 or 1, which would hide a missing one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def make_base(directory: Path, architecture: str = "llama", **overrides: Any) -> Path:
    """Save a tiny base with its tokenizer; returns the directory. `dtype`: of the file, fp32 unless told."""
    dtype = getattr(torch, overrides.pop("dtype", "float32"))
    make_model(architecture, **overrides).to(dtype).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def write_rows(path: Path, number: int, seed: int = 0, num_overlong: int = 0, overlong: int = 200) -> Path:
    """Chat rows of 30 to 75 tokens; the `num_overlong` ones are prompts of more than `overlong` tokens, so that no
    supervised token is left when they are truncated."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(low, high)))

    rows = []
    for index in range(number):
        prompt = f"{index}" + "x" * overlong if index < num_overlong else words(3, 30)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": words(2, 20)}]
        rows.append({"id": f"row-{index}", "messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(base: Path, train: Path, runs_dir: Path, **changes: Any) -> RunConfig:
    """A small fp32 run; `changes` by section, for example `optim={"lr": 1e-3}`."""
    tree: dict[str, Any] = {
        "name": "run",
        "runs_dir": str(runs_dir),
        "model": {"base": str(base), "dtype": "fp32"},
        "method": {"type": "lora", "rank": 4, "alpha": 8},
        "data": {"train": str(train), "seq_len": 96},
        "strategy": {"type": "ddp"},
        "optim": {"lr": 5e-3, "global_batch_size": 8, "micro_batch_size": 1, "max_steps": 30},
        "checkpoint": {"every": 1000},
        "tracking": [],
    }
    for key, value in changes.items():
        replace = key in ("method", "strategy") and value.get("type", tree[key]["type"]) != tree[key]["type"]
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and key in tree and not replace else value
    return RunConfig.model_validate_json(json.dumps(tree))


def zero(stage: int | str) -> dict[str, Any]:
    """The strategy of a shipped DeepSpeed configuration."""
    return {"type": "deepspeed", "config": str(CONFIGS / "deepspeed" / f"zero{stage}.json")}


def prepare_run(config: RunConfig, nproc: int = 1) -> RunDirectory:
    """What `dft train` does before it starts ranks: check, tokenise, make the run directory."""
    from distributed_ft.train import preflight

    run = RunDirectory(Path(config.runs_dir) / config.name)
    data = preflight.check(config, nproc, fresh=True)
    preflight.record_data(run, data)
    write_atomic(run.config, resolved_json(config))
    return run
