"""How scores and checkpoints get into the run directory, and out of it: whole or not at all. Torch-free.

The rules are those of `distributed_ft.artifacts`, which says what can be believed of what is found there.
"""

import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import (
    Checkpoint,
    RunDirectory,
    sha256_of,
    step_name,
    sync_directory,
    write_atomic,
    write_json,
)
from distributed_ft.records import SCHEMA, Sample, TaskResult


def publish_result(run: RunDirectory, result: TaskResult, samples: Sequence[Sample]) -> None:
    """Replace one model's samples and result on one task; at no moment does a result lie beside others' samples. What
    was kept of its answers on the way (`RunDirectory.answers`) is not needed any more."""
    directory = run.results(result.model, result.task)
    (directory / "result.json").unlink(missing_ok=True)
    lines = [json.dumps(_as_line(sample), ensure_ascii=False, allow_nan=False) + "\n" for sample in samples]
    write_atomic(directory / "samples.jsonl", "".join(lines))
    write_json(directory / "result.json", result.model_dump(by_alias=True))
    run.answers(result.model, result.task).unlink(missing_ok=True)


def _as_line(sample: Sample) -> dict[str, Any]:
    return {name: value for name, value in sample.model_dump().items() if value is not None or name == "group"}


def staging(run: RunDirectory, step: int) -> Path:
    """Where the files of a checkpoint are written before they are one; a leftover of a killed save is removed."""
    path = run.checkpoints / f".{step_name(step)}.partial"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def publish(run: RunDirectory, partial: Path, step: int, world_size: int) -> Checkpoint:
    """Flush every file, write the manifest last, rename into place, move LATEST. One process calls it."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entry = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        files[path.relative_to(partial).as_posix()] = entry
    for directory in [p for p in partial.rglob("*") if p.is_dir()]:
        sync_directory(directory)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"schema": SCHEMA, "step": step, "world_size": world_size, "created": created, "files": files}
    write_json(partial / "manifest.json", manifest)
    final = run.checkpoints / step_name(step)
    shutil.rmtree(final, ignore_errors=True)  # only ever one that did not verify: a complete one is resumed from
    os.rename(partial, final)
    sync_directory(run.checkpoints)
    checkpoint = Checkpoint(final)
    run.point("LATEST", checkpoint)
    return checkpoint


def tidy(run: RunDirectory, newest: Checkpoint | None) -> None:
    """What a kill may have left: half-written saves are removed, and LATEST names the newest complete checkpoint. And
    what an earlier training here may have left: a verdict on checkpoints that this one has still to make. For the
    holder of the lock alone."""
    for leftover in run.checkpoints.glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    verdict = run.read_stop_verdict()
    if verdict is not None and (newest is None or newest.step < verdict.step):
        run.stop_verdict.unlink(missing_ok=True)
    latest = run.pointer("LATEST")
    if newest is not None and (latest is None or latest.step != newest.step):
        run.point("LATEST", newest)


def prune(run: RunDirectory, keep: int) -> list[Checkpoint]:
    """Delete all but the `keep` newest checkpoints up to LATEST and the one BEST names; returns what was deleted.

    A checkpoint beyond LATEST was damaged when the run resumed from an earlier one: it takes no good one's place.
    """
    latest, found = run.pointer("LATEST"), run.all_checkpoints()
    kept = {c.step for c in [c for c in found if latest is None or c.step <= latest.step][-keep:]}
    deleted = []
    for checkpoint in [c for c in found if c.step not in kept]:
        best = run.pointer("BEST")  # each time: an eval driver may move it meanwhile
        if best is None or best.step != checkpoint.step:
            (checkpoint.path / "manifest.json").unlink(missing_ok=True)  # from here on it is not a checkpoint
            shutil.rmtree(checkpoint.path)
            deleted.append(checkpoint)
    return deleted
