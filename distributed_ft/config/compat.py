"""What works with what, as data: read by the validator, the tests and the README.

A cell that cannot work carries its reason. `planned: …` is what the error says to someone who asks for it too early.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from distributed_ft.config import deepspeed
from distributed_ft.config.schema import (
    DeepspeedStrategy,
    FsdpStrategy,
    LauncherStrategy,
    MethodConfig,
    QloraMethod,
    RunConfig,
)

Device = Literal["cpu", "cuda"]
Column = Literal["one process", "ddp", "fsdp", "fsdp hybrid", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class Cell:
    """`reason` is empty where it works."""

    reason: str = ""

    @property
    def works(self) -> bool:
        return not self.reason


WORKS = Cell()
COLUMNS: tuple[Column, ...] = ("one process", "ddp", "fsdp", "fsdp hybrid", "zero1", "zero2", "zero3")

_ZERO: dict[int, Column] = {1: "zero1", 2: "zero2", 3: "zero3"}  # by stage

_INT8 = Cell("its scales lie outside the tensor, where nothing shards them; use quantization: nf4, or strategy: ddp")

_COPIED = Cell(
    "PEFT copies the 4-bit layer in every forward pass, which ZeRO-3 knows nothing of; use dora: false, method: lora "
    "or strategy: fsdp"
)

# method x strategy; what is quantised in more than one way has a row for each
METHODS: dict[str, dict[Column, Cell]] = {
    **{method: dict.fromkeys(COLUMNS, WORKS) for method in ("full", "lora", "qlora")},
    "qlora dora": {**dict.fromkeys(COLUMNS, WORKS), "zero3": _COPIED},
    "qlora int8": {column: WORKS if column in ("one process", "ddp") else _INT8 for column in COLUMNS},
    **{method: dict.fromkeys(COLUMNS, WORKS) for method in ("prefix", "prompt", "adapter")},
}

# What puts a checkpoint's `model/` to use, with nothing of ours but where it says so.
LOADED_BY: dict[str, str] = {
    "full": "transformers",
    **dict.fromkeys(("lora", "qlora", "prefix", "prompt"), "peft"),
    "adapter": "`distributed_ft.model.methods.bottleneck.load`, as plain PEFT has no bottleneck adapters",
}

# dtype x device
DTYPES: dict[str, dict[Device, Cell]] = {
    "bf16": {"cpu": WORKS, "cuda": WORKS},
    "fp32": {"cpu": WORKS, "cuda": WORKS},
}

# attention x device
ATTENTION: dict[str, dict[Device, Cell]] = {
    "auto": {"cpu": WORKS, "cuda": WORKS},
    "sdpa": {"cpu": WORKS, "cuda": WORKS},
    "eager": {"cpu": WORKS, "cuda": WORKS},
    "flash_attention_2": {
        "cpu": Cell("FlashAttention has no CPU kernel; use attention: auto"),
        "cuda": WORKS,
    },
    "flex": {"cpu": Cell("flex_attention has no backward pass on a CPU; use attention: auto"), "cuda": WORKS},
}

_BITS_ZERO = Cell("ZeRO flattens and partitions parameters itself, which 8-bit blocks do not survive; use adamw")
_PAGED_CPU = Cell("there is no GPU memory to page out of; use adamw_8bit")

# optimizer x strategy
OPTIMIZERS: dict[str, dict[Column, Cell]] = {
    **{name: dict.fromkeys(COLUMNS, WORKS) for name in ("adamw", "sgd")},
    **{
        name: {column: _BITS_ZERO if column in _ZERO.values() else WORKS for column in COLUMNS}
        for name in ("adamw_8bit", "paged_adamw_8bit")
    },
}

# optimizer x device
OPTIMIZER_DEVICES: dict[str, dict[Device, Cell]] = {
    "adamw": {"cpu": WORKS, "cuda": WORKS},
    "adamw_8bit": {"cpu": WORKS, "cuda": WORKS},
    "paged_adamw_8bit": {"cpu": _PAGED_CPU, "cuda": WORKS},
    "sgd": {"cpu": WORKS, "cuda": WORKS},
}

# What a person may well ask for that the schema does not know yet.
PLANNED: dict[tuple[str, str], str] = {
    ("method.type", "dora"): "it is an option of LoRA here; write method: {type: lora, dora: true}",
    ("method.type", "pissa"): "it is an option of LoRA here; write method: {type: lora, init: pissa}",
    ("method.type", "houlsby"): "it is a kind of adapter here; write method: {type: adapter, adapter: houlsby}",
    ("method.type", "pfeiffer"): "it is a kind of adapter here; write method: {type: adapter, adapter: pfeiffer}",
    ("strategy.type", "fsdp2"): "it is called fsdp here (and is torch's FSDP2); write strategy: {type: fsdp}",
    ("model.dtype", "fp16"): "not supported: it needs loss scaling and overflows easily; use bf16 or fp32",
    ("model.dtype", "bfloat16"): "it is called bf16 here; write dtype: bf16",
    ("model.dtype", "float32"): "it is called fp32 here; write dtype: fp32",
    ("model.attention", "flex_attention"): "it is called flex here; write attention: flex",
    ("optim.name", "adam8bit"): "it is called adamw_8bit here; write name: adamw_8bit",
}


def reason(key: str, value: str) -> str | None:
    """Why a choice that the schema does not know is not there; None when nobody thought of it."""
    return PLANNED.get((key, value))


def column(config: RunConfig, world_size: int) -> Column:
    """The strategy's column of the matrix."""
    if isinstance(config.strategy, FsdpStrategy):
        return "fsdp hybrid" if config.strategy.dp_replicate > 1 else "fsdp"
    if isinstance(config.strategy, DeepspeedStrategy):
        return _ZERO[deepspeed.stage(deepspeed.read(config.strategy.config))]
    return "ddp" if world_size > 1 else "one process"


def row(method: MethodConfig) -> str:
    """The method's row of the matrix."""
    if isinstance(method, QloraMethod) and method.quantization == "int8":
        return "qlora int8"
    return "qlora dora" if isinstance(method, QloraMethod) and method.dora else method.type


def device_problems(config: RunConfig, device: Device) -> list[str]:
    """What of a valid config cannot work on this kind of device: `key: value: reason`."""
    cells = [
        (f"model.dtype: {config.model.dtype}", DTYPES[config.model.dtype][device]),
        (f"model.attention: {config.model.attention}", ATTENTION[config.model.attention][device]),
        (f"optim.name: {config.optim.name}", OPTIMIZER_DEVICES[config.optim.name][device]),
    ]
    return [f"{name}: {cell.reason}" for name, cell in cells if not cell.works]


def missing_packages(config: RunConfig) -> list[str]:
    """Optional packages that a valid config needs and that are not installed: `key: value: reason; remedy`."""
    method, strategy, attention = config.method, config.strategy, config.model.attention
    needed: list[tuple[bool, str, str, str, str]] = [  # when, key and value, module, package, what to use instead
        (isinstance(method, QloraMethod), f"method.type: {method.type}", "bitsandbytes", "bitsandbytes", "lora"),
        ("8bit" in config.optim.name, f"optim.name: {config.optim.name}", "bitsandbytes", "bitsandbytes", "adamw"),
        (
            isinstance(strategy, DeepspeedStrategy),
            f"strategy.type: {strategy.type}",
            "deepspeed",
            "deepspeed",
            "strategy: {type: fsdp}",
        ),
        (
            attention == "flash_attention_2",
            f"model.attention: {attention}",
            "flash_attn",
            "flash-attn",
            "attention: auto",
        ),
    ]
    return [
        f"{key}: {package} is not installed; `pip install {package}`, or use {instead}"
        for asked, key, module, package, instead in needed
        if asked and find_spec(module) is None
    ]


def world_problems(config: RunConfig, world_size: int, fresh: bool = True) -> list[str]:
    """What of a valid config cannot work with this many processes: `key: value: reason`.

    A run that is resumed (not `fresh`) may have any number of them: ranks then get uneven shares of a batch.
    """
    problems = strategy_problems(config, world_size)
    whole, micro = config.optim.global_batch_size, config.optim.micro_batch_size
    unit = micro * world_size
    one_short_pass = whole % world_size == 0 and whole // world_size < micro
    if fresh and whole % unit and not one_short_pass:
        near = [n for n in (whole // unit * unit, whole // unit * unit + unit) if n]
        problems.append(
            f"optim.global_batch_size: {whole} is not a multiple of micro_batch_size {micro} × {world_size} processes; "
            f"make it {' or '.join(map(str, near))}"
        )
    return problems


def strategy_problems(config: RunConfig, world_size: int) -> list[str]:
    """What does not work with the strategy on this many processes: `key: value: reason`. Nothing is known of one that
    is left to the launcher until the processes start; then they ask."""
    if isinstance(config.strategy, LauncherStrategy):
        return []
    method, name, where = row(config.method), config.optim.name, column(config, world_size)
    cells = [(f"method: {method}", METHODS[method][where]), (f"optim.name: {name}", OPTIMIZERS[name][where])]
    problems = [f"{what}: {cell.reason}" for what, cell in cells if not cell.works]
    strategy = config.strategy
    if isinstance(strategy, FsdpStrategy):
        shard, replicate = strategy.dp_shard, strategy.dp_replicate
        if shard is not None and shard * replicate != world_size:
            problems.append(
                f"strategy: dp_shard {shard} × dp_replicate {replicate} is {shard * replicate}, but "
                f"{world_size} {'process was' if world_size == 1 else 'processes were'} asked for; "
                f"give --nproc {shard * replicate}, or leave dp_shard out"
            )
        elif world_size % replicate:
            problems.append(
                f"strategy.dp_replicate: {replicate} does not divide the number of processes, {world_size}; "
                "give a multiple of it as --nproc, or change it"
            )
    return problems


def tables() -> dict[str, dict[str, dict[str, str]]]:
    """Table -> row -> column -> why it does not work, the empty string where it does."""
    devices: tuple[Device, ...] = ("cpu", "cuda")
    return {
        "method": {name: {c: row[c].reason for c in COLUMNS} for name, row in METHODS.items()},
        "dtype": {name: {d: row[d].reason for d in devices} for name, row in DTYPES.items()},
        "optimizer": {name: {c: row[c].reason for c in COLUMNS} for name, row in OPTIMIZERS.items()},
        "optimizer, on": {name: {d: row[d].reason for d in devices} for name, row in OPTIMIZER_DEVICES.items()},
        "attention": {name: {d: row[d].reason for d in devices} for name, row in ATTENTION.items()},
    }


def markdown() -> str:
    """The matrix as Markdown tables, for the README."""
    notes: list[str] = []
    parts = []
    for corner, rows in tables().items():
        lines = [" | ".join((corner, *next(iter(rows.values())))), "---|" * len(next(iter(rows.values()))) + "---"]
        lines += [" | ".join((f"`{name}`", *(_mark(why, notes) for why in row.values()))) for name, row in rows.items()]
        parts.append("\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines))
    return "\n\n".join([*parts, _numbered(notes), _loaded_by()]) + "\n"


def _loaded_by() -> str:
    by = {loader: [f"`{m}`" for m, other in LOADED_BY.items() if other == loader] for loader in LOADED_BY.values()}
    return "`model/` is loaded by: " + "; ".join(f"{', '.join(names)}: {loader}" for loader, names in by.items()) + "."


def text() -> str:
    """The matrix in aligned columns, for a terminal."""
    notes: list[str] = []
    parts = []
    for corner, rows in tables().items():
        lines = [(corner, *next(iter(rows.values())))]
        lines += [(name, *(_mark(why, notes) for why in row.values())) for name, row in rows.items()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts.append("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
    return "\n\n".join([*parts, _numbered(notes), _loaded_by()])


def _numbered(notes: list[str]) -> str:
    return "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))


def _mark(reason: str, notes: list[str]) -> str:
    if not reason:
        return "yes"
    if reason not in notes:
        notes.append(reason)
    return f"{'planned' if reason.startswith('planned') else 'no'} ({notes.index(reason) + 1})"
