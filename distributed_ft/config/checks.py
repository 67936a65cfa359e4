"""What the types cannot say: keys that must fit one another, and paths that must exist (`paths`)."""

import difflib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from distributed_ft.config import deepspeed, paths
from distributed_ft.config.document import Key, Problem, dotted
from distributed_ft.config.paths import GENERAL, general_name, resolve
from distributed_ft.config.schema import (
    FINDING_IDS,
    DeepspeedStrategy,
    EndpointEngineConfig,
    FsdpStrategy,
    HarnessTask,
    LowRank,
    PrefixMethod,
    QloraMethod,
    RunConfig,
)
from distributed_ft.config.task_checks import task_problems


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
        paths.problems,
    )
    return [problem for check in checks for problem in check(config, folder)]


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
