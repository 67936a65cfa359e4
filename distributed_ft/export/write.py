"""A checkpoint as plain PEFT or transformers load it, at the strength that is asked for: `dft export`.

Reads only what lies in the run directory, and the base where weights are merged into it.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed_ft.artifacts import Checkpoint, RunDirectory, read_json, write_json
from distributed_ft.config.load import load_resolved
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.model.strength import scaled

ADAPTER = "adapter_config.json"  # of PEFT


@dataclass(frozen=True)
class Exported:
    """What was written, for a line about it."""

    checkpoint: Checkpoint
    strength: float
    what: str


def export(run_dir: Path, out: Path, checkpoint: str = "best", scale: str = "1", merge: bool = False) -> Exported:
    """Write a checkpoint into the new directory `out`, which appears whole or not at all.

    Args:
        run_dir: a run directory.
        checkpoint: `best`, `latest` or a step.
        scale: a strength above 0 of its adapter (1: as it was trained), or `recommended`, by `dft eval`.
        merge: add the adapter to the base's weights, which makes it a model that needs nothing else.

    Raises:
        ConfigError: `out` is not empty, or an argument means nothing.
        CheckpointError: no such checkpoint, it is damaged, or it cannot be scaled or merged.
    """
    run = RunDirectory(run_dir)
    config = load_resolved(run.config)
    chosen = _checkpoint(run, checkpoint)
    strength = _strength(run, chosen, scale)
    is_peft = (chosen.model / ADAPTER).is_file()
    if strength != 1 and not is_peft:
        raise CheckpointError(f"{chosen.model}: is no adapter of PEFT: its strength cannot be changed")
    if strength != 1:
        changes = scaled(read_json(chosen.model / ADAPTER), strength, chosen.model)
    with _appearing(out) as folder:
        if merge:
            from distributed_ft.export.merge import merge as write_merged

            write_merged(config, chosen.model, strength, folder)
            return Exported(chosen, strength, "a merged model")
        shutil.copytree(chosen.model, folder, dirs_exist_ok=True)
        if strength != 1:
            write_json(folder / ADAPTER, {**read_json(folder / ADAPTER), **changes})
        return Exported(chosen, strength, "an adapter" if is_peft else "its files as they are")


def _checkpoint(run: RunDirectory, name: str) -> Checkpoint:
    """Verified. Raises ConfigError or CheckpointError."""
    if name == "best":
        found = run.pointer("BEST")
        if found is None:
            raise CheckpointError(
                f"{run.path} has no BEST checkpoint: it is not evaluated yet (dft eval {run.path}), or none kept the "
                "general skills; --checkpoint names a step"
            )
    elif name == "latest":
        found = run.newest_complete()
    elif name.isdecimal():
        found = {c.step: c for c in run.all_checkpoints()}.get(int(name))
    else:
        raise ConfigError(f"--checkpoint: {name!r} is neither best, latest nor a step such as 500")
    if found is None:
        there = ", ".join(str(c.step) for c in run.all_checkpoints()) or "none"
        raise CheckpointError(f"{run.checkpoints}: no checkpoint {name} (there are: {there})")
    problem = found.verify("model/")
    if problem is not None:
        raise CheckpointError(f"{found.path} is damaged: {problem}; choose another, or restore it from a copy")
    return found


def _strength(run: RunDirectory, checkpoint: Checkpoint, scale: str) -> float:
    if scale != "recommended":
        try:
            strength = float(scale)
        except ValueError:
            strength = 0.0
        if not 0 < strength <= 10:
            raise ConfigError(f"--scale: {scale!r} is neither a number above 0 and up to 10, nor recommended")
        return strength
    file = run.evaluation / "summary.json"
    found = read_json(file).get("strength") if file.is_file() else None
    if found is None or found["step"] != checkpoint.step:
        raise CheckpointError(
            f"{file}: recommends no strength for step {checkpoint.step}: it was not scored at several; `dft eval "
            f"{run.path} 'evaluation.adapter_strength=[0.25,0.5,0.75]'` does that for BEST"
        )
    if found["recommended"] is None:
        raise CheckpointError(f"{file}: recommends no strength for step {checkpoint.step}: {found['reason']}")
    return float(found["recommended"])


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder, which is put in the place of `out` when it is complete."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; give a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        folder = Path(partial) / "model"
        folder.mkdir()
        yield folder
        if out.is_dir():
            out.rmdir()
        folder.rename(out)


def as_line(exported: Exported, out: Path) -> str:
    """What was done, for a person."""
    at = "" if exported.strength == 1 else f" at strength {json.dumps(exported.strength)}"
    return f"wrote {exported.what} into {out}: {exported.checkpoint.name}{at}"
