"""What `dft check` prints: the resolved run, in aligned text. Torch-free."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, assert_never

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config import deepspeed
from distributed_ft.config.load import LoadedRun, differences, load_resolved
from distributed_ft.config.schema import (
    AdapterMethod,
    DdpStrategy,
    DeepspeedStrategy,
    EvaluationConfig,
    FsdpStrategy,
    HarnessTask,
    LauncherStrategy,
    LowRank,
    OptimConfig,
    QloraMethod,
    RunConfig,
    TaskConfig,
    VirtualTokens,
)
from distributed_ft.errors import CheckpointError

if TYPE_CHECKING:
    from distributed_ft.data.reading import Reading

Line = tuple[str, str]  # label, text
COUNTED_BYTES = 64 * 2**20  # rows of a larger file are not counted: the answer should come at once


class Inspection(Protocol):
    """What is known once data and model have been looked at (`distributed_ft.train.preflight.inspect`)."""

    @property
    def rows(self) -> int: ...
    @property
    def rows_used(self) -> int: ...
    @property
    def sequences_per_epoch(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def rows_per_epoch(self) -> int: ...
    @property
    def supervised_tokens(self) -> int: ...
    @property
    def packing_fill(self) -> float: ...
    @property
    def parameters_total(self) -> int: ...
    @property
    def parameters_trainable(self) -> int: ...
    @property
    def checkpoint_bytes(self) -> int: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


def render(lines: list[Line]) -> str:
    """Two aligned columns."""
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}".rstrip() for label, text in lines)


# --- the config ----------------------------------------------------------------------------------------------------


def config_lines(loaded: LoadedRun, nproc: int) -> list[Line]:
    """The resolved config, where each preset value comes from, the data files and what goes into a step."""
    config = loaded.config
    model, data, evaluation = config.model, config.data, config.evaluation
    rows = "packed" if data.packing else "one row each"
    return [
        ("run", f"{config.name} ({loaded.source}), seed {config.seed}"),
        ("run directory", _run_directory(config)),
        *_preset_lines(loaded),
        ("model", model.base),
        ("", f"{model.dtype}, attention {model.attention}, gradient checkpointing {model.gradient_checkpointing}"),
        ("method", _method(config)),
        *_file_lines(config),
        ("sequences", f"{data.seq_len:,} tokens, {rows}; longer rows: {data.over_long}"),
        ("strategy", _strategy(config)),
        ("world", _count(nproc, "process", "processes")),
        ("global batch", _batch(config, nproc)),
        ("optimizer", _optimizer(config.optim)),
        ("length", _length(config.optim)),
        (
            "checkpoints",
            f"every {config.checkpoint.every:,} steps; the newest {config.checkpoint.keep} and the best kept",
        ),
        ("general suite", ", ".join(map(_suite, evaluation.general)) or "none: forgetting will not be measured"),
        ("few-shot", f"{_shots(evaluation)}; forgetting budget {evaluation.select.forgetting_budget:g}"),
        ("tracking", ", ".join(config.tracking) or "metrics.jsonl only"),
    ]


def config_warnings(config: RunConfig) -> list[str]:
    """What is allowed, and probably not meant."""
    run = RunDirectory(Path(config.runs_dir) / config.name)
    if not run.config.exists():
        return []
    try:
        different = differences(load_resolved(run.config), config)
    except CheckpointError as error:
        return [str(error)]
    return [f"{run.path} holds a run of another config: {difference}" for difference in different]


def _run_directory(config: RunConfig) -> str:
    run = RunDirectory(Path(config.runs_dir) / config.name)
    if not run.path.exists():
        return f"{run.path} (new)"
    latest = run.pointer("LATEST")
    return f"{run.path} ({f'continues after {latest.name}' if latest else 'exists, no checkpoint yet'})"


def _preset_lines(loaded: LoadedRun) -> Iterator[Line]:
    """`method.rank 8 (preset support)`, or `method.rank 4 (yours; preset support: 8)`."""
    config = loaded.config.model_dump()
    for number, (key, preset) in enumerate(loaded.preset_values.items()):
        section, name = key.split(".")
        value, origin = config[section][name], f"preset {loaded.config.preset}"
        note = f"({origin})" if value == preset else f"(yours; {origin}: {preset:g})"
        yield "" if number else "preset", f"{key} {value:g} {note}"


def _method(config: RunConfig) -> str:
    method = config.method
    if isinstance(method, VirtualTokens):
        return f"{method.type}: {method.num_virtual_tokens} trained vectors in front of every document"
    if isinstance(method, AdapterMethod):
        return f"adapter: {method.adapter}, of the layers' width / {method.reduction_factor}"
    if not isinstance(method, LowRank):
        return "full: every weight is trained"
    options = [
        *(name for name in ("rslora", "dora") if getattr(method, name)),
        *(["pissa"] if method.init == "pissa" else []),
        *(f"{name} {getattr(method, name):g}" for name in ("lora_plus", "neftune_alpha") if getattr(method, name)),
    ]
    targets = method.target_modules if isinstance(method.target_modules, str) else ", ".join(method.target_modules)
    base = f" over a base in {method.quantization}" if isinstance(method, QloraMethod) else ""
    line = f"{method.type}{base}: rank {method.rank}, alpha {method.alpha:g}, dropout {method.dropout:g}, on {targets}"
    return ", ".join([line, *options])


def _strategy(config: RunConfig) -> str:
    match config.strategy:
        case DdpStrategy():
            return "ddp: every process holds the whole model"
        case FsdpStrategy(dp_shard=shard, dp_replicate=replicate, cpu_offload=offload):
            where = ", shards in host memory" if offload else ""
            return f"fsdp: dp_shard {shard or f'all processes / {replicate}'}, dp_replicate {replicate}{where}"
        case DeepspeedStrategy(config=file):
            return f"deepspeed: ZeRO {deepspeed.stage(deepspeed.read(file))}, {file}"
        case LauncherStrategy():
            return "launcher: what the file of `accelerate launch` says"
        case _:
            assert_never(config.strategy)


def _batch(config: RunConfig, nproc: int) -> str:
    whole, micro = config.optim.global_batch_size, config.optim.micro_batch_size
    passes = -(-whole // (micro * nproc))
    return (
        f"{whole:,} sequences a step, at most {whole * config.data.seq_len:,} tokens "
        f"({_count(passes, 'forward pass', 'forward passes')} of {micro} on each process)"
    )


def _optimizer(optim: OptimConfig) -> str:
    warmup = f"{optim.warmup_steps:,} steps" if optim.warmup_steps is not None else f"{optim.warmup_ratio:.0%}"
    clip = "no clipping" if optim.max_grad_norm is None else f"gradients clipped at norm {optim.max_grad_norm:g}"
    decay = f", weight decay {optim.weight_decay:g}" if optim.weight_decay else ""
    name = f"sgd with momentum {optim.momentum:g}" if optim.name == "sgd" else optim.name
    return f"{name}, peak rate {optim.lr:g}, {optim.schedule} after {warmup} warm-up, {clip}{decay}"


def _length(optim: OptimConfig) -> str:
    if optim.max_steps is not None:
        return _count(optim.max_steps, "step")
    return "1 epoch" if optim.epochs == 1 else f"{optim.epochs:g} epochs"


def _shots(evaluation: EvaluationConfig) -> str:
    """`4 examples`, `the best of 1, 2, 4, 8 examples`."""
    best = "the best of " if len(evaluation.shots) > 1 else ""
    return f"{best}{', '.join(map(str, evaluation.shots))} examples"


def _count(number: int, one: str, many: str | None = None) -> str:
    """`1 process`, `2,000 processes`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


# --- files ---------------------------------------------------------------------------------------------------------


def _file_lines(config: RunConfig) -> Iterator[Line]:
    """Each data set, what a training row of it was found to look like, and its share. Raises DataError."""
    from distributed_ft.data.reading import Reading, describe

    for number, source in enumerate(config.data.sources):
        weight = f", weight {source.weight:g}" if source.weight is not None else ""
        fraction = f", {source.fraction:.3g} of an epoch" if source.fraction is not None else ""
        reading = Reading.of(source)
        yield "" if number else "train", f"{_file(reading)}{weight}{fraction}"
        if not reading.on_hub:  # what is there is not asked for here: the answer should come at once
            yield "", describe(reading)
    validation = config.data.validation
    if isinstance(validation, float):
        yield "validation", f"{validation:.3g} of the training rows, held out"
    else:
        named = config.data.validation_file
        yield "validation", "none" if named is None else _file(Reading.of(named))
    for number, task in enumerate(config.evaluation.tasks):
        if isinstance(task, HarnessTask):
            yield "" if number else "tasks", f"{task.name}: {task.task} of lm-evaluation-harness"
            continue
        yield "" if number else "tasks", f"{task.name} ({task.metric}): {_file(Reading.of(task))}"
        if isinstance(task.validation, float):
            yield "", f"{task.name}: {task.validation:g} of these rows are kept to choose by"
        elif task.on_validation is not None:
            yield "", f"{task.name}, to choose by: {_file(Reading.of(task.on_validation))}"


def _suite(entry: str | TaskConfig | HarnessTask) -> str:
    return entry if isinstance(entry, str) else f"{entry.name} ({entry.metric})"


def _file(reading: "Reading") -> str:
    """A file, a folder of files or a data set on the hub, with its size and rows where they are quickly known."""
    path, files = reading.path, reading.files()
    if reading.on_hub:
        return f"{path} on the hub, split {reading.split or 'train'}"
    size = sum(file.stat().st_size for file in files)
    counts = [count_rows(file) for file in files] if size <= COUNTED_BYTES else [None]
    shards = "" if files == [Path(path)] else f", {_count(len(files), 'file')}"
    rows = f", {_count(sum(filter(None, counts)), 'row')}" if None not in counts else ""
    return f"{path}{shards}, {readable_bytes(size)}{rows}"


def count_rows(path: Path) -> int | None:
    """Rows of a data file without reading them as conversations; None when they cannot be counted."""
    try:
        match path.suffix.lower():
            case ".jsonl" | ".ndjson":
                with path.open("rb") as file:
                    return sum(1 for line in file if line.strip())
            case ".json":
                rows = json.loads(path.read_bytes())
                return len(rows) if isinstance(rows, list) else None
            case ".csv" | ".tsv":
                delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
                with path.open(encoding="utf-8-sig", newline="") as text:
                    return max(0, sum(1 for row in csv.reader(text, delimiter=delimiter) if row) - 1)
    except (ValueError, RecursionError, csv.Error):
        return None  # the data's own reader says what is wrong, with the line
    return None


def readable_bytes(count: float) -> str:
    """`1.4 MB`; powers of 1000, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


# --- what was measured ---------------------------------------------------------------------------------------------


def inspection_lines(inspection: Inspection, config: RunConfig) -> list[Line]:
    """Rows, steps, parameters and the disk that checkpoints take."""
    share = inspection.parameters_trainable / inspection.parameters_total
    one, keep = inspection.checkpoint_bytes, config.checkpoint.keep
    return [
        (
            "rows",
            f"{inspection.rows:,}, of which {inspection.rows_used:,} used; {inspection.rows_per_epoch:,} in an epoch",
        ),
        (
            "tokens",
            f"{inspection.supervised_tokens:,} supervised in these rows; sequences {inspection.packing_fill:.0%} full",
        ),
        ("epoch", f"{inspection.sequences_per_epoch:,} sequences, {inspection.steps_per_epoch:,} steps"),
        ("steps", f"{inspection.total_steps:,}"),
        (
            "parameters",
            f"{inspection.parameters_trainable:,} trainable of {inspection.parameters_total:,} ({share:.2%})",
        ),
        (
            "disk",
            f"{keep} × {readable_bytes(one)} = {readable_bytes(keep * one)} of checkpoints, "
            f"{readable_bytes((keep + 2) * one)} with the best and one being written; "
            f"{readable_bytes(_free(config))} free",
        ),
    ]


def _free(config: RunConfig) -> int:
    """Bytes free where the run directory is, or will be."""
    place = Path(config.runs_dir)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
