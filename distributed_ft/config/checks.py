"""What the types cannot say: keys that must fit one another, and paths that must exist."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from distributed_ft.config import data_files, deepspeed
from distributed_ft.config.document import Key, Problem, dotted
from distributed_ft.config.schema import (
    FINDING_IDS,
    DataFile,
    DeepspeedStrategy,
    EndpointEngineConfig,
    FsdpStrategy,
    HarnessTask,
    JsonFieldsTask,
    LowRank,
    PrefixMethod,
    QloraMethod,
    RunConfig,
    TaskConfig,
)
from distributed_ft.config.task_checks import task_problems
from distributed_ft.errors import DataError

# os.path's questions are asked here, not pathlib's: they answer no where pathlib raises (a name that is too long).
ASSETS = Path(__file__).resolve().parent.parent / "assets"
GENERAL = "general"  # the task name of the shipped general suite
_SHIPPED = "shipped:"
_HARNESS_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,99}")
_LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and a suffix may be needed
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def problems(config: RunConfig, folder: Path) -> list[Problem]:
    """Everything that is wrong with a config whose types are right; `folder` is what its paths are relative to."""
    checks: tuple[Callable[[RunConfig, Path], Iterator[Problem]], ...] = (
        _batch_sizes,
        _steps,
        _sharding,
        _engine,
        _attention,
        _method,
        _weights,
        _waivers,
        _names,
        _tasks,
        _choices,
        _server,
        _strength,
        _runs_dir,
        _base,
        _files,
    )
    return [problem for check in checks for problem in check(config, folder)]


# --- paths ---------------------------------------------------------------------------------------------------------


def resolve(path: str, folder: Path) -> Path:
    """Absolute path of what run.yaml calls `path`: `shipped:NAME`, `~/…`, or relative to run.yaml's folder."""
    if path.startswith(_SHIPPED):
        return ASSETS / path.removeprefix(_SHIPPED)
    return Path(os.path.abspath(folder / os.path.expanduser(path)))


def runs_dir(config: RunConfig) -> Path:
    """Absolute; relative to the working directory, as it is where the command is given that a run belongs."""
    return Path(os.path.abspath(os.path.expanduser(config.runs_dir)))


def is_hub_id(base: str, folder: Path) -> bool:
    """Whether `model.base` is a hub id: it has the form of one, and no such directory is there."""
    looks_like_path = base.startswith((".", "/", "~", _SHIPPED)) or not _HUB_ID.fullmatch(base)
    return not looks_like_path and not os.path.isdir(resolve(base, folder))


def file_paths(config: RunConfig, folder: Path) -> Iterator[tuple[Key, str]]:
    """Every path of a file (or folder of data) that the config names, by key; words and hub ids are none."""
    for key, path, _ in _data_paths(config, folder):
        yield key, path
    if config.data.audit.json_schema is not None:
        yield ("data", "audit", "schema"), config.data.audit.json_schema
    if isinstance(config.strategy, DeepspeedStrategy):
        yield ("strategy", "config"), config.strategy.config
    for key, task in config.evaluation.entries:
        if isinstance(task, JsonFieldsTask) and task.json_schema is not None:
            yield (*key, "schema"), task.json_schema
    for index, general in enumerate(config.evaluation.general):
        if isinstance(general, str) and general != "shipped" and not is_harness_name(general, folder):
            yield ("evaluation", "general", index), general
    if config.evaluation.generic_text not in (None, "shipped"):
        yield ("evaluation", "generic_text"), config.evaluation.generic_text


def _data_paths(config: RunConfig, folder: Path) -> Iterator[tuple[Key, str, str | None]]:
    """Key, path and split of what is trained, validated and judged on, where it is not on the hub."""
    train, validation = config.data.train, config.data.validation
    entries: list[tuple[Key, str | DataFile]] = [(("data", "train"), train)] if isinstance(train, str) else []
    if not isinstance(train, str):
        entries = [(("data", "train", index), entry) for index, entry in enumerate(train)]
    if isinstance(validation, str | DataFile):
        entries.append((("data", "validation"), validation))
    for key, task in config.evaluation.entries:
        entries.append((key, task))
        if isinstance(task.validation, str | DataFile):
            entries.append(((*key, "validation"), task.validation))
    for key, entry in entries:
        file = entry if isinstance(entry, DataFile) else DataFile(path=entry)
        if not data_files.is_hub_id(file.path, folder):
            yield (*key, "path") if isinstance(entry, DataFile) else key, file.path, file.split


def is_harness_name(entry: str, folder: Path | None = None) -> bool:
    """Whether an entry of `evaluation.general` names a task of lm-evaluation-harness; `folder` where paths are not
    absolute yet, and a file may have such a name."""
    named = bool(_HARNESS_NAME.fullmatch(entry)) and entry != "shipped"
    return named and (folder is None or not os.path.exists(resolve(entry, folder)))


def general_name(entry: str | TaskConfig | HarnessTask) -> str:
    """Task name of an entry of `evaluation.general`: its own, `general` for the shipped suite, else the file's stem."""
    if not isinstance(entry, str):
        return entry.name
    return GENERAL if entry == "shipped" else Path(entry.removeprefix(_SHIPPED)).stem


# --- keys that must fit --------------------------------------------------------------------------------------------


def _batch_sizes(config: RunConfig, _: Path) -> Iterator[Problem]:
    whole, micro = config.optim.global_batch_size, config.optim.micro_batch_size
    if whole % micro:
        # Both neighbours are multiples of micro; below micro itself there is none.
        near = [n for n in (whole - whole % micro, whole - whole % micro + micro) if n]
        yield Problem(
            ("optim", "global_batch_size"),
            f"{whole} is not a multiple of micro_batch_size {micro}; make it {' or '.join(map(str, near))}",
            also=(("optim", "micro_batch_size"),),
        )


def _steps(config: RunConfig, _: Path) -> Iterator[Problem]:
    warmup, steps = config.optim.warmup_steps, config.optim.max_steps
    if warmup is not None and steps is not None and warmup >= steps:
        yield Problem(
            ("optim", "warmup_steps"),
            f"{warmup} must be less than max_steps {steps}, or the peak rate is never reached",
            also=(("optim", "max_steps"),),
        )


def _sharding(config: RunConfig, _: Path) -> Iterator[Problem]:
    strategy = config.strategy
    if isinstance(strategy, FsdpStrategy) and strategy.dp_shard == 1 and strategy.dp_replicate > 1:
        yield Problem(
            ("strategy", "dp_shard"),
            "1 shards nothing; write strategy: {type: ddp}, or a dp_shard of 2 or more",
            also=(("strategy", "dp_replicate"),),
        )


def _engine(config: RunConfig, folder: Path) -> Iterator[Problem]:
    """What is wrong with DeepSpeed's JSON; that it is missing, `_files` says."""
    if not isinstance(config.strategy, DeepspeedStrategy):
        return
    path = resolve(config.strategy.config, folder)
    if os.path.isfile(path):
        for problem in deepspeed.problems(path.read_text(encoding="utf-8", errors="replace")):
            yield Problem(("strategy", "config"), f"{config.strategy.config}: {problem}")


def _attention(config: RunConfig, _: Path) -> Iterator[Problem]:
    if config.model.attention == "flash_attention_2" and config.model.dtype == "fp32":
        yield Problem(
            ("model", "attention"),
            "'flash_attention_2' computes in bf16 only; write dtype: bf16, or attention: sdpa",
            also=(("model", "dtype"),),
        )


def _method(config: RunConfig, _: Path) -> Iterator[Problem]:
    method = config.method
    if isinstance(method, QloraMethod) and method.init == "pissa":
        yield Problem(
            ("method", "init"),
            "'pissa' takes the adapters' start out of the base, and quantised weights cannot hold the rest exactly: "
            "the saved adapter would answer otherwise than it was trained; write init: default, or type: lora",
            also=(("method", "type"),),
        )
    if isinstance(method, PrefixMethod) and config.model.gradient_checkpointing != "none":
        yield Problem(
            ("model", "gradient_checkpointing"),
            f"{config.model.gradient_checkpointing!r} does not work with method: {{type: prefix}}, whose keys and "
            "values enter each layer by a cache, which recomputation would fill twice; write none, or use type: prompt",
            also=(("method", "type"),),
        )


def _weights(config: RunConfig, _: Path) -> Iterator[Problem]:
    train = config.data.train
    if isinstance(train, str):
        return
    sources = config.data.sources
    fractions = [source.fraction for source in sources if source.fraction is not None]
    weighted = [source.weight is not None for source in sources]
    if fractions and any(weighted):
        yield Problem(("data", "train"), "some files have a weight and some a fraction; give weights, or fractions")
    elif any(weighted) and not all(weighted):
        index = weighted.index(False)
        yield Problem(
            ("data", "train", index),
            "has no weight, but other files have; give every file one ({path: …, weight: …}), or none",
            also=(("data", "train"),),
        )
    elif len(fractions) == len(sources):
        yield Problem(("data", "train"), "every file has a fraction; leave it out of the one that is seen whole")
    elif sum(fractions) >= 1:
        yield Problem(
            ("data", "train"), f"the fractions sum to {sum(fractions):g}, which leaves the other files nothing"
        )


def _waivers(config: RunConfig, _: Path) -> Iterator[Problem]:
    for index, name in enumerate(config.data.waive):
        if not any((name + ".").startswith(i + ".") or i.startswith(name + ".") for i in FINDING_IDS):
            close = difflib.get_close_matches(name, FINDING_IDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"they are {', '.join(FINDING_IDS)}"
            yield Problem(("data", "waive", index), f"{name!r} is no id of a finding; {hint}")


def _names(config: RunConfig, _: Path) -> Iterator[Problem]:
    seen: dict[str, Key] = {}
    for index, entry in enumerate(config.evaluation.general):
        key: Key = ("evaluation", "general", index)
        name = general_name(entry)
        key, what, remedy = (
            (key, repr(entry), "rename the file")
            if isinstance(entry, str)
            else ((*key, "name"), repr(entry.name), "choose another name")
        )
        if name in seen:
            yield Problem(key, f"{what} would be scored as {name!r}, as {dotted(seen[name])} is; {remedy}")
        elif name == GENERAL and entry != "shipped":
            yield Problem(key, f"{what}: the name {GENERAL!r} is kept for the shipped suite; {remedy}")
        else:
            seen[name] = key
    for index, task in enumerate(config.evaluation.tasks):
        key = ("evaluation", "tasks", index, "name")
        if task.name == GENERAL:
            yield Problem(key, f"{task.name!r} is kept for the general suite; choose another name")
        elif task.name in seen:
            yield Problem(key, f"{task.name!r} is taken by {dotted(seen[task.name])}; choose another name")
        else:
            seen[task.name] = key


def _choices(config: RunConfig, _: Path) -> Iterator[Problem]:
    """What is chosen needs rows to choose by."""
    judged = config.evaluation
    if judged.early_stop is not None and not judged.tasks:
        yield Problem(
            ("evaluation", "early_stop"),
            "goes by the accuracy on evaluation.tasks, and there are none; name a task, or remove it",
            also=(("evaluation", "tasks"),),
        )
    if not judged.shots:
        yield Problem(("evaluation", "few_shot"), "is empty; write a number of examples, auto, or [2, 4, 8]")
    without = [i for i, task in enumerate(judged.tasks) if isinstance(task, HarnessTask) or task.validation is None]
    if len(judged.shots) > 1 and without:
        key: Key = ("evaluation", "tasks", without[0], "validation")
        shown = "auto" if judged.few_shot == "auto" else f"[{', '.join(map(str, judged.shots))}]"
        yield Problem(
            ("evaluation", "few_shot"),
            f"{shown} is a choice, made on validation rows, and task {judged.tasks[without[0]].name!r} has none (made "
            f"on the rows that it is judged by, it would flatter the prompt); give {dotted(key)}, or one number",
            also=(key,),
        )


def _server(config: RunConfig, _: Path) -> Iterator[Problem]:
    """A server's names of the checkpoints, and what cannot be asked of a server."""
    engine = config.evaluation.engine
    if not isinstance(engine, EndpointEngineConfig):
        return
    key: Key = ("evaluation", "engine", "checkpoint_model")
    try:
        names = {engine.checkpoint_model.format(run="r", step=step, name=f"step-{step}") for step in (1, 2)}
    except (KeyError, IndexError, ValueError):
        names = set()
    if len(names) < 2:
        yield Problem(
            key,
            f"{engine.checkpoint_model!r} is not a name of each checkpoint; write {{step}} where its number stands, or "
            "{name} for step-00000500 (and {run} for the name of the run)",
        )
    if config.evaluation.adapter_strength:
        yield Problem(
            ("evaluation", "adapter_strength"),
            "cannot be used with engine.type: endpoint: a server's adapters are as strong as they are; remove it",
            also=(("evaluation", "engine", "type"),),
        )


def _strength(config: RunConfig, _: Path) -> Iterator[Problem]:
    """Only a low-rank adapter's difference to the base can be scaled, and what is gained is measured on tasks."""
    key: Key = ("evaluation", "adapter_strength")
    if not config.evaluation.adapter_strength:
        return
    dora = isinstance(config.method, LowRank) and config.method.dora
    if not isinstance(config.method, LowRank) or dora:
        method = "method.dora: true" if dora else f"method.type: {config.method.type}"
        yield Problem(
            key,
            f"cannot be used with {method}: only LoRA's difference to the base can be scaled (lora and qlora, without "
            "dora); remove it",
            also=(("method", "dora") if dora else ("method", "type"),),
        )
    if not config.evaluation.tasks:
        yield Problem(
            key,
            "weighs accuracy on evaluation.tasks against forgetting, and there are none; name a task, or remove it",
            also=(("evaluation", "tasks"),),
        )


def _tasks(config: RunConfig, _: Path) -> Iterator[Problem]:
    for key, task in config.evaluation.entries:
        for name, message in task_problems(task, config.evaluation.allow_code_execution):
            yield Problem((*key, *name), message)


# --- what must exist -----------------------------------------------------------------------------------------------


def _runs_dir(config: RunConfig, _: Path) -> Iterator[Problem]:
    if len(config.name) > _LONGEST_NAME:
        yield Problem(
            ("name",), f"has {len(config.name)} characters, and at most {_LONGEST_NAME} make a directory name"
        )
        return
    run = runs_dir(config) / config.name
    existing = next(p for p in (run, *run.parents) if os.path.exists(p))
    if not existing.is_dir():
        yield Problem(("runs_dir",), f"{existing}: is a file, and must be a directory")


def _base(config: RunConfig, folder: Path) -> Iterator[Problem]:
    base = config.model.base
    directory = resolve(base, folder)
    if is_hub_id(base, folder):
        beside = _near(directory)
        if beside is not None and os.path.isdir(directory.parent / beside):
            yield Problem(("model", "base"), f"{directory}: no such directory; did you mean {beside}?")
        return
    if not os.path.isdir(directory):
        wrong = (
            "is a file; give the directory it is in" if os.path.exists(directory) else _missing(directory, "directory")
        )
        yield Problem(("model", "base"), f"{directory}: {wrong}")
        return
    lacking = []
    if not (directory / "config.json").is_file():
        lacking.append("config.json")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        lacking.append("tokenizer files (tokenizer.json)")
    if not any(directory.glob("*.safetensors")):
        lacking.append("weights (*.safetensors)")
    if lacking:
        adapter = (directory / "adapter_config.json").is_file()
        remedy = "it holds an adapter; give the base model" if adapter else "save a model there with save_pretrained"
        yield Problem(("model", "base"), f"{directory}: lacks {' and '.join(lacking)}; {remedy}")


def _files(config: RunConfig, folder: Path) -> Iterator[Problem]:
    splits = {key: split for key, _, split in _data_paths(config, folder)}
    for key, text in file_paths(config, folder):
        path = resolve(text, folder)
        if key in splits and (os.path.isdir(path) or (splits[key] is not None and os.path.isfile(path))):
            try:
                data_files.files_of(path, splits[key])
            except DataError as error:
                yield Problem(key, str(error))
        elif os.path.isdir(path):
            yield Problem(key, f"{path}: is a directory, not a file")
        elif not os.path.isfile(path):
            yield Problem(key, f"{path}: {_missing(path, 'file')}")
        elif not os.access(path, os.R_OK):
            yield Problem(key, f"{path}: cannot be read; you lack the permission")
        elif key[-1] == "schema":
            yield from _schema_file(key, path)


def _schema_file(key: Key, path: Path) -> Iterator[Problem]:
    try:
        schema = json.loads(path.read_bytes())
    except ValueError as error:
        yield Problem(key, f"{path}: not valid JSON ({error})")
        return
    if not isinstance(schema, dict):
        yield Problem(key, f"{path}: not a JSON Schema: it must be an object, {{…}}")


def _missing(path: Path, kind: str) -> str:
    """`no such file`, and the name beside it that was probably meant."""
    beside = _near(path)
    return f"no such {kind}" + (f"; did you mean {beside}?" if beside else "")


def _near(path: Path) -> str | None:
    """The name beside `path` that is most like its own."""
    try:
        beside = {p.stem: p.name for p in path.parent.iterdir()} if os.path.isdir(path.parent) else {}
    except OSError:
        beside = {}
    close = difflib.get_close_matches(path.stem, beside, n=1, cutoff=0.7)
    return beside[close[0]] if close else None
