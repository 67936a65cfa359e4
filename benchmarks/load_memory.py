"""What loading costs in host memory: the peak of each rank, from an empty process to a model that can be trained.

    python -m benchmarks.load_memory [--quick] [--methods lora …] [--strategies fsdp …] [--worlds 1 2 4] [--out FILE]

A Llama of about 1 GB in fp32 is made from a config, with random weights, in files of 200 MB; its embeddings are the
largest tensors, as in real models. Each arm is a fresh world of real ranks that builds, shards and fills the model and
makes the optimizer. `peak` is VmHWM after loading less VmRSS before it, of the rank that used most: pages of files that
are mapped count too. `whole` is the same with the base loaded whole by transformers on each rank and sharded then,
which is what a trainer does that does not stream.

Reported per arm: the peak, the peak over that of one process, what the rank then holds, and what it should hold (its
share of the parameters). There is no optimizer state before the first step.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import harness
from benchmarks.cases import DEMO
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.model.load import load_tokenizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "deepspeed"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 8},
    "full": {"type": "full"},
    "qlora": {"type": "qlora", "rank": 8},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "fsdp": {"type": "fsdp"},
    "zero3": {"type": "deepspeed", "config": str(CONFIGS / "zero3.json")},
}
QUICK = {"hidden_size": 256, "num_hidden_layers": 4}


def make_base(directory: Path, quick: bool) -> int:
    """Save the base; returns the bytes of its tensors."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(DEMO.parent / "base"))
    sizes = {"hidden_size": 1024, "num_hidden_layers": 14, **(QUICK if quick else {})}
    config = LlamaConfig(
        vocab_size=32_000,
        intermediate_size=sizes["hidden_size"] * 11 // 4,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        **sizes,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory, max_shard_size="200MB")
    tokenizer.save_pretrained(directory)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def config_of(base: Path, method: str, strategy: str) -> RunConfig:
    """fp32 throughout, so that shares can be compared."""
    tree = {
        "name": "load",
        "model": {"base": str(base), "dtype": "fp32"},
        "method": METHODS[method],
        "data": {"train": "none"},
        "strategy": STRATEGIES[strategy],
    }
    return RunConfig.model_validate_json(json.dumps(tree))


def measure(folder: Path, config: RunConfig, world_size: int, whole: bool) -> dict[str, int]:
    """The rank that used most."""
    config_file = folder / "config.json"
    config_file.write_text(resolved_json(config))
    arguments = [str(config_file), "whole" if whole else "streamed"]
    ranks = harness.run_fresh("benchmarks.load_worker", arguments, world_size)
    return {key: max(rank[key] for rank in ranks) for key in ("peak", "held")}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_memory", description="Host memory of loading.")
    parser.add_argument("--quick", action="store_true", help="a small base; no result file unless --out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    out = options.out or (None if options.quick else harness.RESULTS / "load_memory.json")
    result: dict[str, Any] = {"benchmark": "load_memory", "environment": harness.environment(), "arms": []}
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        folder = Path(temporary)
        result["base_bytes"] = make_base(folder / "base", options.quick)
        for method in options.methods:
            for strategy in options.strategies:
                config = config_of(folder / "base", method, strategy)
                for whole in (False, True) if strategy == "fsdp" else (False,):
                    for world_size in options.worlds:
                        found = measure(folder, config, world_size, whole)
                        arm = {"method": method, "strategy": strategy, "whole": whole, "ranks": world_size, **found}
                        alone = next(
                            (a["peak"] for a in [*result["arms"], arm] if _same(a, arm) and a["ranks"] == 1), None
                        )
                        arm["peak_of_one"] = None if alone is None else arm["peak"] / alone
                        result["arms"].append(arm)
                        print(f"  {method} {strategy} {world_size}: {arm['peak'] / 2**20:.0f} MiB", file=sys.stderr)
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("method", "strategy", "whole"))


def render(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = []
    for arm in result["arms"]:
        ratio = "" if arm["peak_of_one"] is None else f"{arm['peak_of_one']:.2f}"
        strategy = f"{arm['strategy']}, loaded whole" if arm["whole"] else arm["strategy"]
        rows.append([arm["method"], strategy, str(arm["ranks"]), *(_mib(arm[k]) for k in ("peak", "held")), ratio])
    header = ["method", "strategy", "ranks", "peak", "held after", "peak / one process"]
    return f"a base of {_mib(result['base_bytes'])} in fp32; a rank's host memory\n" + harness.table(header, rows)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
