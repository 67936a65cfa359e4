"""What works with what, as data: read by the validator, the tests and the README.

A cell that cannot work carries its reason. `planned: …` is what the error says to someone who asks for it too early.
"""

from dataclasses import dataclass
from typing import Literal

from distributed_ft.config.schema import FsdpStrategy, RunConfig

Device = Literal["cpu", "cuda"]
Column = Literal["one process", "ddp", "fsdp", "fsdp hybrid", "deepspeed"]


@dataclass(frozen=True)
class Cell:
    """`reason` is empty where it works."""

    reason: str = ""

    @property
    def works(self) -> bool:
        return not self.reason


WORKS = Cell()
COLUMNS: tuple[Column, ...] = ("one process", "ddp", "fsdp", "fsdp hybrid", "deepspeed")

_DEEPSPEED = Cell("planned: ZeRO 1 to 3; use strategy: {type: fsdp}, which shards the same tensors")

# method x strategy
METHODS: dict[str, dict[Column, Cell]] = {
    "full": {"one process": WORKS, "ddp": WORKS, "fsdp": WORKS, "fsdp hybrid": WORKS, "deepspeed": _DEEPSPEED},
    "lora": {"one process": WORKS, "ddp": WORKS, "fsdp": WORKS, "fsdp hybrid": WORKS, "deepspeed": _DEEPSPEED},
    "qlora": {"one process": WORKS, "ddp": WORKS, "fsdp": WORKS, "fsdp hybrid": WORKS, "deepspeed": _DEEPSPEED},
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

_BITS_DEEPSPEED = Cell("ZeRO flattens and partitions parameters itself, which 8-bit blocks do not survive; use adamw")
_PAGED_CPU = Cell("there is no GPU memory to page out of; use adamw_8bit")

# optimizer x strategy
OPTIMIZERS: dict[str, dict[Column, Cell]] = {
    name: {**dict.fromkeys(COLUMNS, WORKS), "deepspeed": cell}
    for name, cell in (
        ("adamw", _DEEPSPEED),
        ("adamw_8bit", _BITS_DEEPSPEED),
        ("paged_adamw_8bit", _BITS_DEEPSPEED),
        ("sgd", _DEEPSPEED),
    )
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
    (
        "method.quantization",
        "int8",
    ): "planned: its scales lie outside the tensor, unsharded and unsaved; use nf4",
    ("method.type", "dora"): "planned: weight-decomposed LoRA; use method: {type: lora}",
    ("method.type", "prefix"): "planned: prefix tuning; use method: {type: lora}",
    ("strategy.type", "deepspeed"): _DEEPSPEED.reason,
    ("strategy.type", "launcher"): "planned: taken from `accelerate launch`; use strategy: {type: fsdp} or {type: ddp}",
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
    return "ddp" if world_size > 1 else "one process"


def device_problems(config: RunConfig, device: Device) -> list[str]:
    """What of a valid config cannot work on this kind of device: `key: value: reason`."""
    cells = [
        (f"model.dtype: {config.model.dtype}", DTYPES[config.model.dtype][device]),
        (f"model.attention: {config.model.attention}", ATTENTION[config.model.attention][device]),
        (f"optim.name: {config.optim.name}", OPTIMIZER_DEVICES[config.optim.name][device]),
    ]
    return [f"{name}: {cell.reason}" for name, cell in cells if not cell.works]


def world_problems(config: RunConfig, world_size: int, fresh: bool = True) -> list[str]:
    """What of a valid config cannot work with this many processes: `key: value: reason`.

    A run that is resumed (not `fresh`) may have any number of them: ranks then get uneven shares of a batch.
    """
    where = column(config, world_size)
    cells = [
        (f"method.type: {config.method.type}", METHODS[config.method.type][where]),
        (f"optim.name: {config.optim.name}", OPTIMIZERS[config.optim.name][where]),
    ]
    problems = [f"{name}: {cell.reason}" for name, cell in cells if not cell.works]
    whole, micro = config.optim.global_batch_size, config.optim.micro_batch_size
    unit = micro * world_size
    if fresh and whole % unit:
        near = [n for n in (whole // unit * unit, whole // unit * unit + unit) if n]
        problems.append(
            f"optim.global_batch_size: {whole} is not a multiple of micro_batch_size {micro} × {world_size} processes; "
            f"make it {' or '.join(map(str, near))}"
        )
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


def markdown() -> str:
    """The matrix as Markdown tables, for the README."""
    devices: tuple[Device, ...] = ("cpu", "cuda")
    notes: list[str] = []
    parts = [
        _table("method", COLUMNS, {m: [row[c] for c in COLUMNS] for m, row in METHODS.items()}, notes),
        _table("dtype", devices, {d: [row[c] for c in devices] for d, row in DTYPES.items()}, notes),
        _table("optimizer", COLUMNS, {o: [row[c] for c in COLUMNS] for o, row in OPTIMIZERS.items()}, notes),
        _table("optimizer", devices, {o: [row[c] for c in devices] for o, row in OPTIMIZER_DEVICES.items()}, notes),
        _table("attention", devices, {a: [row[c] for c in devices] for a, row in ATTENTION.items()}, notes),
        "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(corner: str, columns: tuple[str, ...], rows: dict[str, list[Cell]], notes: list[str]) -> str:
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in rows.items():
        lines.append(f"| `{name}` | " + " | ".join(_mark(cell, notes) for cell in cells) + " |")
    return "\n".join(lines)


def _mark(cell: Cell, notes: list[str]) -> str:
    if cell.works:
        return "yes"
    if cell.reason not in notes:
        notes.append(cell.reason)
    return f"{'planned' if cell.reason.startswith('planned') else 'no'} ({notes.index(cell.reason) + 1})"
