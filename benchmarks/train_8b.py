"""An 8B model on one GPU: speed and memory of LoRA and QLoRA, through the project's own `open_run` and `fit`.

    python -m benchmarks.train_8b [--quick] [--methods lora qlora] [--out FILE]

The model has the shape of Llama-3.1-8B and random weights, written once as bf16 safetensors files of 2 GB into a
temporary folder ($TMPDIR needs 20 GB); the tokenizer is the embedded one. Each method trains 20 steps of 4 sequences,
one at a time, in a fresh process: rank 16 on all linear layers, every layer recomputed, sequences of 4,096 tokens
packed from documents of several lengths. The first 5 steps warm up and are not counted.

Reported per method: tokens/s (all tokens of the batch, supervised or not), the time of a step, MFU and HFU (see
`distributed_ft.train.flops`: 4 P + 6 P_lora + 6 L d s a token; in HFU what recomputation adds too; attention counts the
tokens of a token's own document, not of the sequence), peak GPU memory allocated and reserved while training, and the
seconds from an empty process group to a model that can be trained.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from benchmarks import harness
from benchmarks.cases import DEMO, Case
from distributed_ft.config import compat
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.model.load import load_tokenizer
from distributed_ft.train import flops, preflight

STEPS, WARM_UP = 20, 5
WRITERS = 4  # files of the base that are made at once, each in memory until it is written
TIMEOUT_SECONDS = 240.0  # of one method
WORDS = ("the", "order", "was", "sent", "to", "a", "new", "address", "and", "customer", "asks", "when", "it", "will")
METHODS: dict[str, dict[str, Any]] = {name: {"type": name, "rank": 16, "alpha": 32} for name in ("lora", "qlora")}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Size:
    """What is trained. file_bytes: the most that a file of the base holds, unless one tensor is larger."""

    shape: Mapping[str, Any]
    seq_len: int
    global_batch_size: int
    file_bytes: int


FULL_SIZE = Size(
    {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rope_parameters": LLAMA_3_ROPE,
    },
    seq_len=4096,
    global_batch_size=4,
    file_bytes=2 * 10**9,
)
QUICK = Size(
    {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131_072,
        "rope_parameters": LLAMA_3_ROPE,
    },
    seq_len=256,
    global_batch_size=2,
    file_bytes=500_000,
)


def make_base(directory: Path, size: Size) -> int:
    """Write the base, file by file, drawn on the GPU if there is one; returns how many bytes its tensors have."""
    tokenizer = load_tokenizer(str(DEMO.parent / "base"))
    config = LlamaConfig(
        **size.shape,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    groups = in_files(shapes, size.file_bytes)
    files = [f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors" for number in range(len(groups))]

    def write(number: int) -> None:
        tensors = random_tensors({name: shapes[name] for name in groups[number]}, config.initializer_range, number)
        save_file(tensors, directory / files[number], {"format": "pt"})

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(len(groups))))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes that train
    total = sum(_bytes(shape) for shape in shapes.values())
    placed = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def in_files(shapes: Mapping[str, torch.Size], file_bytes: int) -> list[list[str]]:
    """The tensors' names in their order, cut where a file would become too large."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if groups[-1] and held + _bytes(shape) > file_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += _bytes(shape)
    return groups


def random_tensors(shapes: Mapping[str, torch.Size], deviation: float, seed: int) -> dict[str, torch.Tensor]:
    """bf16, on the CPU: matrices from N(0, deviation), norms of one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        tensor = torch.ones(shape, dtype=torch.bfloat16, device=device)
        made[name] = (tensor.normal_(0, deviation, generator=generator) if tensor.ndim > 1 else tensor).cpu()
    return made


def _bytes(shape: torch.Size) -> int:
    return shape.numel() * torch.bfloat16.itemsize


def write_rows(path: Path, size: Size) -> Path:
    """Enough rows for all steps: answers of a 64th to half of a sequence, in words of about one token."""
    rng = random.Random(0)
    words = 0
    with path.open("w") as file:
        while words < STEPS * size.global_batch_size * size.seq_len:
            length = rng.randint(size.seq_len // 64, size.seq_len // 2)
            answer = " ".join(rng.choice(WORDS) for _ in range(length))
            messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
            words += length
    return path


def config_of(folder: Path, method: str, size: Size) -> RunConfig:
    """A run on one process, over `folder/base` and `folder/rows.jsonl`."""
    tree = {
        "name": method,
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(folder / "base"), "dtype": "bf16", "gradient_checkpointing": "full"},
        "method": METHODS[method],
        "data": {"train": str(folder / "rows.jsonl"), "seq_len": size.seq_len},
        "strategy": {"type": "ddp"},
        "optim": {"max_steps": STEPS, "global_batch_size": size.global_batch_size, "micro_batch_size": 1},
        "checkpoint": {"every": STEPS},
    }
    return RunConfig.model_validate_json(json.dumps(tree))


def measure(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Train in a fresh process; see this module's docstring for the figures. Memory and MFU are None on a CPU."""
    case = Case(folder / config.name)
    (case.directory / "data").mkdir(parents=True)
    (case.directory / "config.json").write_text(resolved_json(config))
    preflight.check(config, 1, fresh=True, here=True).write(case.directory / "data")
    (found,) = harness.run_fresh("benchmarks.ours", [str(case.directory)], timeout=TIMEOUT_SECONDS)
    seconds, tokens = found["seconds"][WARM_UP:], found["tokens"][WARM_UP:]
    speed = sum(tokens) / sum(seconds)
    trainable, total = found["parameters"]
    lengths = case.data.train[0].lengths
    document = float((lengths**2).sum() / lengths.sum())  # tokens of the document that a token is in, on average
    architecture = AutoConfig.from_pretrained(config.model.base)
    cost = flops.flops_per_token(architecture, total, trainable, round(document))
    again = flops.recomputed_flops_per_token(architecture, total - trainable, round(document))
    on_gpu = found["gpu_training"] is not None
    peak = flops.peak_flops(torch.cuda.get_device_name()) if on_gpu else None
    return {
        "method": config.method.model_dump(),
        "parameters": {"trainable": trainable, "total": total},
        "steps": len(seconds),
        "step_tokens": statistics.mean(tokens),
        "document_tokens": document,
        "tokens_per_second": speed,
        "step_seconds": harness.spread(seconds),
        "flops_per_token": cost,
        "recomputed_flops_per_token": again,
        "mfu": cost * speed / peak if peak is not None else None,
        "hfu": (cost + again) * speed / peak if peak is not None else None,
        "peak_allocated_bytes": found["gpu_training"]["allocated"] if on_gpu else None,
        "peak_reserved_bytes": found["gpu_training"]["reserved"] if on_gpu else None,
        "loading_peak_allocated_bytes": found["gpu_loading"]["allocated"] if on_gpu else None,
        "load_seconds": found["load_seconds"],
        "host_peak_bytes": found["resident_peak"],
        "losses": found["losses"],
    }


def device() -> dict[str, Any]:
    """The GPU that is used; without one, nothing."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_8b", description="An 8B model on one GPU.")
    parser.add_argument("--quick", action="store_true", help="a tiny model, also on a CPU; no result file unless --out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if not options.quick and not torch.cuda.is_available():
        parser.error("the full size needs a GPU; --quick does not")
    size = QUICK if options.quick else FULL_SIZE
    out = options.out or (None if options.quick else harness.RESULTS / "train_8b.json")
    settings = {"seq_len": size.seq_len, "global_batch_size": size.global_batch_size, "micro_batch_size": 1}
    result: dict[str, Any] = {
        "benchmark": "train_8b",
        "environment": {**harness.environment(), **device()},
        "model": dict(size.shape),
        "settings": {**settings, "dtype": "bf16", "gradient_checkpointing": "full", "warm_up_steps": WARM_UP},
        "arms": [],
    }
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        folder = Path(temporary)
        begin = time.perf_counter()
        result["base_bytes"] = make_base(folder / "base", size)
        print(f"  made the base in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        write_rows(folder / "rows.jsonl", size)
        for method in options.methods:
            config = config_of(folder, method, size)
            problems = compat.missing_packages(config)
            if problems:  # the other method's figures are worth having without
                print(f"  {method}: left out: {'; '.join(problems)}", file=sys.stderr)
                continue
            begin = time.perf_counter()
            result["arms"].append(measure(folder, config))
            print(f"  {method}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
            if out is not None:  # at once, so that a failure of the next one does not cost this one
                harness.write_result(out, result)
    print(render(result))
    return 0


def render(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    rows = [
        [
            arm["method"]["type"],
            f"{arm['tokens_per_second']:,.0f}",
            harness.milliseconds(arm["step_seconds"]),
            *("" if arm[share] is None else f"{arm[share]:.1%}" for share in ("mfu", "hfu")),
            *(_gib(arm[key]) for key in ("peak_allocated_bytes", "peak_reserved_bytes")),
            f"{arm['load_seconds']:.1f} s",
        ]
        for arm in result["arms"]
    ]
    environment = result["environment"]
    header = ["method", "tokens/s", "ms a step", "MFU", "HFU", "allocated", "reserved", "load"]
    where = environment.get("gpu", environment["device"])
    return f"a base of {_gib(result['base_bytes'])} in bf16, on {where}\n" + harness.table(header, rows)


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
