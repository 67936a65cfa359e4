"""The DeepSpeed JSON that `strategy.config` names: engine knobs, and nothing that run.yaml says.

One place for each setting: a key that run.yaml owns is an error that names both places, and there is no "auto".
Torch-free.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed_ft.config.schema import OptimConfig
from distributed_ft.errors import ConfigError

Knobs = dict[str, Any]

# What run.yaml owns, and under which key.
OWNED = {
    "train_batch_size": "optim.global_batch_size",
    "train_micro_batch_size_per_gpu": "optim.micro_batch_size",
    "gradient_accumulation_steps": "optim.global_batch_size and optim.micro_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer": "optim.name, optim.lr and their neighbours",
    "scheduler": "optim.schedule",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "activation_checkpointing": "model.gradient_checkpointing",
    "checkpoint": "checkpoint",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "csv_monitor": "tracking",
    "comet": "tracking",
    "seed": "seed",
    "prescale_gradients": "the trainer: gradients are those of the loss summed over all ranks",
    "gradient_predivide_factor": "the trainer: gradients are those of the loss summed over all ranks",
    "zero_allow_untested_optimizer": "optim.name",
    "zero_force_ds_cpu_optimizer": "optim.name",
}
# What DeepSpeed alone understands.
ENGINE = (
    "zero_optimization",
    "aio",
    "comms_logger",
    "communication_data_type",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "wall_clock_breakdown",
)


def read(path: str | Path) -> Knobs:
    """The knobs in a file. Raises ConfigError with a line for everything that is wrong with it."""
    text = _text(Path(path))
    found = [f"strategy.config: {path}: {problem}" for problem in problems(text)]
    if found:
        raise ConfigError("\n".join(found))
    knobs: Knobs = json.loads(text)
    return knobs


def stage(knobs: Knobs) -> int:
    """ZeRO's stage: 1 shards the optimizer state, 2 gradients too, 3 parameters too."""
    return int(knobs["zero_optimization"]["stage"])


def problems(text: str) -> Iterator[str]:
    """What is wrong with the text of such a file: `line: key: what; remedy`."""
    try:
        knobs = json.loads(text)
    except ValueError as error:
        yield f"not valid JSON: {error}"
        return
    if not isinstance(knobs, dict) or not isinstance(knobs.get("zero_optimization"), dict):
        yield 'needs {"zero_optimization": {"stage": 1, 2 or 3, …}}'
        return
    for key in knobs:
        if key in OWNED:
            yield f"{_line(text, key)}{key}: run.yaml says this: {OWNED[key]}; delete it here"
        elif key not in ENGINE:
            close = difflib.get_close_matches(key, ENGINE, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ENGINE)}"
            yield f"{_line(text, key)}{key}: no engine knob; {hint}"
    for key in _autos(knobs):
        yield f'{_line(text, key)}{key}: "auto": nobody fills it in here; give a number, or delete it for the default'
    yield from _not_supported(text, knobs["zero_optimization"])
    number = knobs["zero_optimization"].get("stage")
    if number not in (1, 2, 3) or isinstance(number, bool):
        yield f"zero_optimization.stage: {number!r}; 1, 2 or 3 (without ZeRO, use strategy: {{type: ddp}})"


def _not_supported(text: str, zero: Knobs) -> Iterator[str]:
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            yield f"{_line(text, key)}{key}.device: nvme: not supported: what resume needs is not read back; use cpu"
    if zero.get("zero_hpz_partition_size", 1) != 1:
        key = "zero_hpz_partition_size"
        yield f"{_line(text, key)}{key}: not supported: its second copy of the weights is stale once resumed; delete it"


def engine_config(knobs: Knobs, optim: OptimConfig) -> Knobs:
    """What `deepspeed.initialize` is given: the knobs, and run.yaml's part in DeepSpeed's words.

    Micro-batches are counted by the trainer, which says at each whether it is the last of a step; the loss is divided
    by the global token count already. The optimizer is torch's, made by the trainer, also where it is offloaded.
    """
    return {
        **knobs,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm or 0.0,  # 0: none
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"strategy.config: {path}: cannot be read: {error}") from None


def _autos(value: Any, key: str = "") -> Iterator[str]:
    if value == "auto":
        yield key
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _autos(inner, name)


def _line(text: str, key: str) -> str:
    """`line 7: `, where the key first stands."""
    for number, line in enumerate(text.splitlines(), 1):
        if f'"{key}"' in line:
            return f"line {number}: "
    return ""
