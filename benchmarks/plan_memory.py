"""How near `dft plan` comes: planned and measured bytes of a rank, in twelve configurations, and two that miss.

    python -m benchmarks.plan_memory [--only NAME…]

Measured: real ranks train two steps (`benchmarks.plan_worker`); the most that torch's own allocator had given out.
Planned: `distributed_ft.plan.measure` on the same config, from its config.json alone.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.harness import RESULTS, environment, run_fresh, write_result
from distributed_ft.config.load import resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.model.load import quiet_libraries
from distributed_ft.plan.measure import measure

ALLOWED = 0.05  # share of the measured peak that the plan may be away
SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
VOCABULARY = 2048
LAYERS = 6

FULL, LORA, QLORA = {"type": "full"}, {"type": "lora"}, {"type": "qlora"}
FSDP: dict[str, Any] = {"type": "fsdp"}
CASES: dict[str, dict[str, Any]] = {  # ranks, and what is not the default
    "lora": {"ranks": 1, "method": LORA},
    "lora, recompute full": {"ranks": 1, "method": LORA, "recompute": "full", "passes": 2},
    "lora, recompute selective": {"ranks": 1, "method": LORA, "recompute": "selective"},
    "full": {"ranks": 1, "method": FULL, "passes": 2},
    "full, sgd, fp32": {"ranks": 1, "method": FULL, "optimizer": "sgd", "dtype": "fp32"},
    "full, adamw_8bit": {"ranks": 1, "method": FULL, "optimizer": "adamw_8bit", "recompute": "full"},
    "qlora nf4": {"ranks": 1, "method": QLORA, "recompute": "full"},
    "prefix": {"ranks": 1, "method": {"type": "prefix"}, "passes": 2},
    "lora, ddp": {"ranks": 2, "method": LORA, "passes": 2},
    "full, fsdp": {"ranks": 2, "method": FULL, "strategy": FSDP, "recompute": "full", "allowed": 0.15},
    "lora, fsdp, kept gathered": {"ranks": 2, "method": LORA, "strategy": {**FSDP, "reshard_after_forward": False}},
    "qlora nf4, fsdp": {"ranks": 2, "method": QLORA, "strategy": FSDP, "recompute": "full", "passes": 2},
    "bottleneck adapters": {"ranks": 1, "method": {"type": "adapter", "adapter": "houlsby"}},
    # These two miss. With anything that watches operations, torch keeps more of DoRA's graph than without.
    "lora + dora": {"ranks": 1, "method": {**LORA, "dora": True}, "allowed": 0.15},
}


def base(directory: Path) -> Path:
    """A random Llama on disk: 6 layers of width 256, 2,048 tokens in its vocabulary, 5 M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **SHAPE, dtype=torch.bfloat16)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


def config_of(case: dict[str, Any], base: Path) -> RunConfig:
    """The run of a case."""
    ranks, passes, micro = case["ranks"], case.get("passes", 1), 2
    return RunConfig.model_validate(
        {
            "name": "plan",
            "model": {
                "base": str(base),
                "dtype": case.get("dtype", "bf16"),
                "gradient_checkpointing": case.get("recompute", "none"),
            },
            "method": case["method"],
            "strategy": case.get("strategy", {"type": "ddp"}),
            "data": {"train": "unread.jsonl", "seq_len": 256},
            "optim": {
                "name": case.get("optimizer", "adamw"),
                "micro_batch_size": micro,
                "global_batch_size": micro * ranks * passes,
            },
        }
    )


def run(case: dict[str, Any], base: Path) -> dict[str, Any]:
    """Planned and measured bytes of the rank with most, and how far the plan is away."""
    config = config_of(case, base)
    planned = measure(config, case["ranks"], on_gpu=torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(resolved_json(config))
        measured = max(m["peak"] for m in run_fresh("benchmarks.plan_worker", [str(file)], case["ranks"]))
    return {
        "ranks": case["ranks"],
        "planned": planned.training,
        "measured": measured,
        "error": planned.training / measured - 1,
        "parts": planned.parts,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--only", choices=CASES, nargs="+", help="measure these again, and keep the rest of the file"
    )
    only = arguments.parse_args().only
    quiet_libraries()
    file = RESULTS / "plan_memory.json"
    results = json.loads(file.read_text())["cases"] if only and file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        directory = base(Path(folder))
        for name in only or CASES:
            results[name] = run(CASES[name], directory)
            print(as_line(name, results[name]), flush=True)
    results = {name: results[name] for name in CASES if name in results}
    write_result(file, {"environment": environment(), "allowed": ALLOWED, "cases": results})
    beyond = [name for name, r in results.items() if abs(r["error"]) > CASES[name].get("allowed", ALLOWED)]
    assert not beyond, f"more than {ALLOWED:.0%} away: {', '.join(beyond)}"


def as_line(name: str, result: dict[str, Any]) -> str:
    """A row of the table in docs/plan.md."""
    planned, measured = (result[key] / 2**20 for key in ("planned", "measured"))
    return f"| {name} | {result['ranks']} | {planned:.1f} | {measured:.1f} | {result['error']:+.1%} |"


if __name__ == "__main__":
    main()
