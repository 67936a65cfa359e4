"""Everything about a run that can be known before any process group exists: the base, the targets, the data, the sizes.

`dft check` prints it, `dft train` insists on it, and what it prepares (tokens) is what the ranks will read.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from distributed_ft.artifacts import RunDirectory, read_json, write_json
from distributed_ft.config import compat
from distributed_ft.config.schema import DeepspeedStrategy, RunConfig, VirtualTokens
from distributed_ft.data.audit.of_run import audit_of
from distributed_ft.data.order import Order
from distributed_ft.data.prepare import prepare
from distributed_ft.data.report import line_of, stopping, with_audit
from distributed_ft.data.store import QUARANTINE, PreparedData, open_prepared
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.model import methods
from distributed_ft.model.load import (
    DTYPES,
    base_identity,
    build_empty,
    load_tokenizer,
    quiet_libraries,
    weights_problem,
)
from distributed_ft.model.shapes import num_parameters
from distributed_ft.train.schedule import warmup_steps
from distributed_ft.train.trackers import check_installed


@dataclass(frozen=True)
class Inspection:
    """The size of a run, in numbers. checkpoint_bytes: of one checkpoint, model and state."""

    rows: int
    rows_used: int
    sequences_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    rows_per_epoch: int
    supervised_tokens: int
    packing_fill: float
    parameters_total: int
    parameters_trainable: int
    checkpoint_bytes: int
    warnings: tuple[str, ...]


def inspect(config: RunConfig, nproc: int) -> Inspection:
    """Check the run as `check` does, and count. Raises as `check` does."""
    data = check(config, nproc, fresh=True)
    order = Order.of(config, data)
    trainable, total = num_parameters(_adapted_shapes(config))
    return Inspection(
        rows=data.report["rows_in"],
        rows_used=data.report["rows_used"],
        sequences_per_epoch=order.num_packs(0),
        steps_per_epoch=order.steps_per_epoch,
        total_steps=order.total_steps,
        warmup_steps=warmup_steps(config.optim, order.total_steps),
        rows_per_epoch=data.report["rows_per_epoch"],
        supervised_tokens=data.report["supervised_tokens"],
        packing_fill=data.report["packing_fill"],
        parameters_total=total,
        parameters_trainable=trainable,
        checkpoint_bytes=checkpoint_bytes(config, trainable),
        warnings=tuple(_warnings(config, order, data)),
    )


def check(config: RunConfig, nproc: int, fresh: bool, here: bool = False) -> PreparedData:
    """Check what can be checked, and tokenise the data (or find it done).

    Args:
        config: the run.
        nproc: how many processes it shall have.
        fresh: it has no checkpoint yet; a resumed run may have any number of processes.
        here: the processes will run on this machine, so it must have the devices.

    Raises:
        ConfigError, DataError: naming the key or the file and line.
    """
    quiet_libraries()
    problems = compat.world_problems(config, nproc, fresh) + compat.missing_packages(config)
    if here:
        problems += _missing_here(config, nproc)
    weights = weights_problem(config.model.base)
    if weights is not None:
        problems.append(f"model.base: {weights}")
    if problems:
        raise ConfigError("\n".join(problems))
    _check_knobs(config)
    check_installed(config.tracking)
    data = audited(config, prepare(config, load_tokenizer(config.model.base), cache_of(config)))
    if fresh:
        refuse_faults(data.report)
    model = _adapted_shapes(config)  # target modules that match nothing are found here, not after a queue
    problems = [*_misfits(config, data, model)]
    if problems:
        raise ConfigError("\n".join(problems))
    return data


def check_strategy(config: RunConfig, nproc: int) -> None:
    """What the ranks ask, who know a strategy that was left to the launcher, and how many they are. Raises ConfigError
    where `check` would."""
    problems = compat.strategy_problems(config, nproc) + compat.missing_packages(config)
    if problems:
        raise ConfigError("\n".join(problems))
    _check_knobs(config)


def _check_knobs(config: RunConfig) -> None:
    if isinstance(config.strategy, DeepspeedStrategy):
        from distributed_ft.parallel.deepspeed import check_knobs

        check_knobs(config.strategy.config, config.optim)


def audited(config: RunConfig, data: PreparedData) -> PreparedData:
    """The same data with what an audit finds in its files in the report."""
    found = audit_of(config, cache_of(config).with_name("audit"))
    return replace(data, report=with_audit(data.report, found, config.data.waive))


def refuse_faults(report: Mapping[str, Any]) -> None:
    """Raises DataError when the data has faults that nobody has waived."""
    faults = stopping(report)
    if faults:
        ids = ", ".join(dict.fromkeys(fault["id"] for fault in faults))
        lines = [*map(line_of, faults), f"data.waive: correct the data, or go on all the same with waive: [{ids}]"]
        raise DataError("\n".join(lines))


def _misfits(config: RunConfig, data: PreparedData, model: nn.Module) -> Iterator[str]:
    """What data, model and schedule say of one another: `key: value: remedy`."""
    embeddings = cast(PreTrainedModel, model).get_input_embeddings().weight.shape[0]
    largest = max(store.largest_id for store in (*data.train, *filter(None, [data.validation])))
    if largest >= embeddings:
        yield (
            f"model.base: {config.model.base}: its tokenizer writes the token {largest}, but the model has embeddings "
            f"for {embeddings} (0 to {embeddings - 1}); use the tokenizer that the model was made with, or enlarge the "
            "model (resize_token_embeddings) and save it"
        )
    total = Order.of(config, data).total_steps
    if config.optim.warmup_steps is not None and config.optim.warmup_steps >= total:
        yield (
            f"optim.warmup_steps: {config.optim.warmup_steps} must be less than the {total} steps of the run, or the "
            "peak rate is never reached"
        )


def _missing_here(config: RunConfig, nproc: int) -> list[str]:
    if not torch.cuda.is_available():
        return compat.device_problems(config, "cpu")
    problems, count = compat.device_problems(config, "cuda"), torch.cuda.device_count()
    if nproc > count:
        problems.append(
            f"--nproc: {nproc} processes on {count} GPU(s); start {count}, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    return problems


def cache_of(config: RunConfig) -> Path:
    """Where tokenised data is kept, shared by all runs of a `runs_dir`."""
    return Path(config.runs_dir) / ".cache" / "data"


def record_data(run: RunDirectory, data: PreparedData) -> None:
    """Tie the data to the run. Raises DataError when the run began with other data: resuming would change its order."""
    manifest = run.data / "manifest.json"
    if manifest.exists():
        began_with = read_json(manifest)["digest"]
        if began_with != data.digest:
            raise DataError(
                f"{run.path}: the training data changed since the run began (digest {began_with[:12]}, now "
                f"{data.digest[:12]}); restore the files, or start under another name"
            )
    data.write(run.data)


def record_base(run: RunDirectory, base: str) -> None:
    """Tie the base to the run. Raises ConfigError when the run began with other weights: an adapter would be trained
    half on these and half on those."""
    identity = base_identity(base)
    if not run.base.exists():
        write_json(run.base, {"schema": 1, "base": base, "files": identity})
        return
    began_with = read_json(run.base)["files"]
    if began_with != identity:
        changed = sorted(k for k in {*began_with, *identity} if began_with.get(k) != identity.get(k))
        raise ConfigError(
            f"model.base: {base}: {', '.join(changed[:3])} changed since {run.path} began; restore it, or start under "
            "another name"
        )


def data_for(config: RunConfig, run: RunDirectory) -> PreparedData:
    """The run's prepared data. Where the cache is gone rank 0 makes it again, and the others look for it on disk: no
    collective, so no time limit."""
    manifest = run.data / "manifest.json"
    while True:
        try:
            return open_prepared(manifest)
        except DataError:
            if int(os.environ.get("RANK", "0")) == 0:
                data = prepare(config, load_tokenizer(config.model.base), cache_of(config))
                record_data(run, audited(config, data))
                return data
            time.sleep(0.5)


def checkpoint_bytes(config: RunConfig, trainable: int) -> int:
    """Size of one checkpoint: the saved weights, and fp32 parameters with the optimizer's moments for resume."""
    saved = DTYPES[config.model.dtype].itemsize if config.method.type == "full" else 4
    if methods.starts_from_base(config.method):
        saved *= 2  # what is trained, and where it began
    moments = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 4}[config.optim.name]  # bytes an element
    return trainable * (saved + 4 + moments)


def disk_for_checkpoints(config: RunConfig) -> tuple[int, int]:
    """Bytes that the run's checkpoints take at most (the kept ones, the best, one being written), and bytes free."""
    trainable, _ = num_parameters(_adapted_shapes(config))
    needed = checkpoint_bytes(config, trainable) * (config.checkpoint.keep + 2)
    return needed, shutil.disk_usage(_existing(Path(config.runs_dir))).free


def _adapted_shapes(config: RunConfig) -> nn.Module:
    with torch.device("meta"):
        return methods.apply(build_empty(config.model), config.method)


def _warnings(config: RunConfig, order: Order, data: PreparedData) -> list[str]:
    warnings = [line_of(f) for f in data.report["findings"] if f["severity"] == "warning" and not f["waived"]]
    if bad := data.report["rows_bad"]:
        unreadable = f"{bad:,} unreadable row{'s' if bad != 1 else ''} passed over"
        warnings.append(f"data.skip_bad {config.data.skip_bad}: {unreadable}, kept in {data.directory / QUARANTINE}")
    positions = getattr(_text_config(config), "max_position_embeddings", None)
    virtual = config.method.num_virtual_tokens if isinstance(config.method, VirtualTokens) else 0
    longest = max(int(store.lengths.max()) for store in data.train) + virtual
    if positions is not None and longest > positions:
        having = f"the longest row has {longest:,} tokens{f' with {virtual} virtual ones' if virtual else ''}"
        warnings.append(f"data.seq_len: {having}, more than the {positions:,} positions of the model")
    device: compat.Device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings += [f"on this machine: {problem}" for problem in compat.device_problems(config, device)]
    if order.total_steps < 10:
        warnings.append(
            f"only {order.total_steps} optimizer steps: lower optim.global_batch_size or data.seq_len, or train longer"
        )
    if config.checkpoint.every > order.total_steps:
        warnings.append(f"checkpoint.every {config.checkpoint.every}: there will be one checkpoint, at the last step")
    if not config.evaluation.tasks:
        warnings.append("evaluation.tasks is empty: nothing will say whether the task was learned")
    if data.validation is None:
        warnings.append("data.validation is not set: there will be no validation loss")
    needed, free = disk_for_checkpoints(config)
    if needed > free:
        warnings.append(f"checkpoints may need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    return warnings


def _text_config(config: RunConfig) -> Any:
    return AutoConfig.from_pretrained(config.model.base).get_text_config()


def _existing(path: Path) -> Path:
    return next(p for p in [path, *path.parents] if p.exists())
