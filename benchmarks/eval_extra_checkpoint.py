"""What one more checkpoint costs in an evaluation, beside the forward passes that it cannot do without.

python -m benchmarks.eval_extra_checkpoint [--items 192] [--tokens 24] [--checkpoints 5] [--out FILE]

One driver scores a base, then adapters one after another, as `dft eval` does: identity, adapter swap, prompts,
decoding, scores, files. `total` is the wall time of all that for one adapter, `forward` the part of it that is spent in
calls of the model (CUDA is waited for), so that both see the same machine at the same time. The base is loaded once,
which is in neither. Two bases: the shipped tiny one, whose passes are so short that everything else shows, and one of
the sizes below with random weights, which is still far smaller than what is fine-tuned in earnest.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks import harness
from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import resolved_json
from distributed_ft.config.paths import ASSETS
from distributed_ft.config.schema import RunConfig
from distributed_ft.evaluation.driver import Evaluation
from distributed_ft.evaluation.engines import TransformersEngine, opened
from distributed_ft.evaluation.tasks import build_tasks
from distributed_ft.model.load import quiet_libraries
from distributed_ft.publishing import publish, staging

BATCH = 32
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
RANK = 16
TARGET = 1.05  # total / forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "eval_extra_checkpoint.json")
    options = parser.parse_args()
    quiet_libraries()
    found = {}
    for name in ("random_108M", "shipped_tiny"):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(Path(folder), name, options.items, options.tokens, options.checkpoints)
        print(f"{name}: {summary(found[name])}")
    settings = {"items": options.items, "max_new_tokens": options.tokens, "batch_size": BATCH, "lora_rank": RANK}
    result = {"environment": harness.environment(), "settings": settings, "target": TARGET, "bases": found}
    harness.write_result(options.out, result)


def measure(folder: Path, name: str, items: int, tokens: int, checkpoints: int) -> dict[str, Any]:
    """Seconds of each additional checkpoint."""
    shipped = ASSETS / "base"
    base = shipped if name == "shipped_tiny" else random_base(folder / "base", shipped)
    run = make_run(folder, base, items, tokens)
    adapters = [make_adapter(folder / f"adapter-{seed}", base, seed) for seed in range(checkpoints)]
    for step, adapter in enumerate(adapters, start=1):
        partial = staging(run, step)
        shutil.copytree(adapter, partial / "model")
        publish(run, partial, step, world_size=1)
    config = RunConfig.model_validate_json(run.config.read_text())
    rows = []
    with opened(config) as engine, contextlib.redirect_stderr(io.StringIO()):
        assert isinstance(engine, TransformersEngine)
        evaluation = Evaluation(run, config, build_tasks(config.evaluation), engine)
        evaluation.scores_of_base()
        for checkpoint in run.all_checkpoints():
            with forward_seconds(engine) as forward:
                begin = time.perf_counter()
                evaluation.scores_of(evaluation.tuned(checkpoint))
                total = time.perf_counter() - begin
            rows.append({"total": total, "forward": sum(forward), "passes": len(forward)})
    return {
        "parameters": sum(p.numel() for p in engine._loaded.parameters()),
        "checkpoints": rows,
        "ratio": harness.spread([row["total"] / row["forward"] for row in rows]),
        "overhead_seconds": harness.spread([row["total"] - row["forward"] for row in rows]),
    }


@contextlib.contextmanager
def forward_seconds(engine: TransformersEngine) -> Iterator[list[float]]:
    """Of each call of the model, whether for logits or to fill a cache."""
    spent: list[float] = []
    begun: list[float] = []

    def now() -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    model = engine._loaded.base_model  # the head's part is a call of `model`, which holds this one
    hooks = [
        engine._loaded.register_forward_pre_hook(lambda *_: begun.append(now())),
        engine._loaded.register_forward_hook(lambda *_: spent.append(now() - begun.pop())),
        model.register_forward_pre_hook(lambda *_: begun.append(now())),
        model.register_forward_hook(lambda *_: _inner(begun, spent, now())),
    ]
    yield spent
    for hook in hooks:
        hook.remove()


def _inner(begun: list[float], spent: list[float], end: float) -> None:
    """A call of the layers alone counts where it is not part of a call with the head."""
    start = begun.pop()
    if not begun:
        spent.append(end - start)


def random_base(folder: Path, shipped: Path) -> Path:
    """Random weights of SIZES, the shipped tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=32_000, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, seed: int) -> Path:
    """LoRA on every linear layer, with random numbers in both matrices."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(folder))
    return folder


def make_run(folder: Path, base: Path, items: int, tokens: int) -> RunDirectory:
    """A run directory with one task, whose prompts have different lengths."""
    task = folder / "task.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": "copy " + " ".join(str(i * j % 89) for j in range(2 + i % 12))},
                {"role": "assistant", "content": str(i)},
            ]
        }
        for i in range(items)
    ]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"tasks": [{"name": "task", "path": str(task), "max_new_tokens": tokens}], "general": []}
    values = {
        "name": "run",
        "runs_dir": str(folder),
        "model": {"base": str(base), "dtype": "fp32"},
        "data": {"train": str(task)},
        "evaluation": {**section, "few_shot": 0, "batch_size": BATCH},
    }
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    run.config.write_text(resolved_json(RunConfig.model_validate_json(json.dumps(values))))
    return run


def summary(found: dict[str, Any]) -> str:
    ratio, overhead = found["ratio"], found["overhead_seconds"]
    return (
        f"{found['parameters'] / 1e6:.1f} M parameters: total / forward {ratio['median']:.3f} "
        f"({ratio['min']:.3f}-{ratio['max']:.3f}), overhead {overhead['median']:.2f} s a checkpoint"
    )


if __name__ == "__main__":
    main()
