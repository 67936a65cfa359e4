"""The run directory: the names in it, how a file gets there, and what can be believed of what is found there.

Training, evaluation and export never import each other; they meet here, on disk. Two rules make that safe:

* a file is written beside its place, flushed to disk and renamed: a reader sees the old file or the new one;
* a checkpoint's `manifest.json`, with size and sha256 of each file, is written last: without a manifest that checks
  out it is not a checkpoint, whatever else lies there.

Torch-free. `"schema": 1` versions every JSON file that other programs may read.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from distributed_ft.errors import CheckpointError
from distributed_ft.records import Manifest, Sample, StopVerdict, TaskResult

_STEP_NAME = re.compile(r"step-(\d{8})")


# --- files that appear whole or not at all -------------------------------------------------------------------------


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` with `content` in one step, durably. Raises OSError (disk full, …) and leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Atomic JSON, two-space indented, in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises CheckpointError, naming the file, when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one line; a reader that finds a half-written last line (a kill) skips it: see `read_json_lines`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file that this project wrote; [] when there is none."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):  # not splitlines(): JSON text may hold U+2028 and its like unescaped
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # only ever the last line before a kill
    return records


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path, refusal: str) -> Iterator[IO[str]]:
    """A file locked by this process, which writes into it who it is. Raises CheckpointError: the refusal, with whoever
    holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "process unknown"
            raise CheckpointError(f"{refusal} ({holder})") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        file.truncate(0)
        job = f"job {job_number()}, " if job_number() else ""
        file.write(f"{job}process {os.getpid()} on {host_name()}\n")
        file.flush()
        yield file


# --- the run directory ---------------------------------------------------------------------------------------------


def resume_command(path: Path, num_processes: int) -> str:
    """The command that continues a run on as many local processes as it has now, or as `dft train` says it."""
    if "DFT_AGAIN" in os.environ:
        return os.environ["DFT_AGAIN"]
    return f"dft train {shlex.quote(str(path))}" + (f" --nproc {num_processes}" if num_processes > 1 else "")


def host_name() -> str:
    """This node as the batch system calls it, else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def job_number() -> str | None:
    """This process's job, as Slurm's commands take it (a task of an array: `12_3`); None outside of one."""
    return os.environ.get("DFT_JOB") or os.environ.get("SLURM_JOB_ID")


def step_name(step: int) -> str:
    """`step-00000500`."""
    return f"step-{step:08d}"


class Checkpoint:
    """One directory under `checkpoints/`. It counts only if `verify()` returns None."""

    def __init__(self, path: Path) -> None:
        match = _STEP_NAME.fullmatch(path.name)
        assert match, path
        self.path = path
        self.step = int(match.group(1))
        self.name = path.name

    @property
    def model(self) -> Path:
        """What a user loads: an adapter (PEFT format) or full weights (Hugging Face format)."""
        return self.path / "model"

    @property
    def state(self) -> Path:
        """What only resume needs."""
        return self.path / "state"

    def manifest(self) -> Manifest:
        """Raises CheckpointError when there is none, or it cannot be read."""
        raw = read_json(self.path / "manifest.json")
        try:
            return Manifest(**{**raw, "schema_version": raw["schema"]})
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path / 'manifest.json'}: not a manifest ({error})") from None

    def verify(self, within: str = "") -> str | None:
        """None if every file, or every one `within` a folder such as `model/`, is there with the size and sha256 of the
        manifest, else what is wrong."""
        try:
            manifest = self.manifest()
        except CheckpointError as error:
            return str(error)
        for name, entry in manifest.files.items():
            path = self.path / name
            if not name.startswith(within):
                continue
            if not path.is_file():
                return f"{path}: missing"
            if path.stat().st_size != entry.size:
                return f"{path}: {path.stat().st_size} bytes, {entry.size} expected"
            if sha256_of(path) != entry.sha256:
                return f"{path}: its content changed after it was written (sha256 differs)"
        return None

    @property
    def published(self) -> bool:
        """Whether it has its manifest, which it gets last and loses first; what is in its files is not looked at."""
        return (self.path / "manifest.json").is_file()

    def model_digest(self) -> str:
        """Identity of what is evaluated: sha256 over the manifest's entries for `model/`."""
        entries = {name: e.sha256 for name, e in self.manifest().files.items() if name.startswith("model/")}
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()

    def answers_digest(self, base: str) -> str:
        """Identity of what it answers; `base` is the base model's: an adapter is nothing without the base under it."""
        return hashlib.sha256(f"{base} {self.model_digest()}".encode()).hexdigest()


class RunDirectory:
    """Names and rules of `runs/<name>/`; creates nothing until asked to."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.run_yaml = self.path / "run.yaml"
        self.config = self.path / "config.json"
        self.base = self.path / "base.json"  # which weights it began with
        self.adapter_start = self.path / "adapter_start.safetensors"  # of adapters that begin from the base's weights
        self.environment = self.path / "environment.json"
        self.data = self.path / "data"
        self.metrics = self.path / "metrics.jsonl"
        self.progress = self.path / "progress.json"  # where a training is
        self.tensorboard = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.latest_file = self.path / "LATEST"
        self.best_file = self.path / "BEST"
        self.evaluation = self.path / "evaluation"
        self.stop_verdict = self.evaluation / "verdict.json"  # whether more training helps
        self.slurm = self.path / "slurm"  # batch scripts, their output, and what became of each job

    @contextmanager
    def lock(self) -> Iterator[IO[str]]:
        """Hold the directory, which must exist, for one training. Processes that inherit the file hold it too, so it is
        free when all of them are gone. A file system without locks is trusted.

        Raises CheckpointError when another training holds it.
        """
        with _held(self.path / ".lock", f"{self.path}: another training is running there") as file:
            yield file

    @contextmanager
    def evaluation_lock(self) -> Iterator[IO[str]]:
        """Hold `evaluation/` and `BEST` for one eval driver, as `lock` holds the rest for one training; neither knows
        of the other. Raises CheckpointError when another driver holds it."""
        self.evaluation.mkdir(parents=True, exist_ok=True)
        with _held(self.evaluation / ".lock", f"{self.path}: another evaluation is running there") as file:
            yield file

    def report(self, suffix: Literal["html", "md", "json"]) -> Path:
        return self.path / f"report.{suffix}"

    def results(self, model: str, task: str) -> Path:
        """Directory of one model's samples and result on one task; model: base, few-shot or a checkpoint's name."""
        return self.evaluation / model / task

    def answers(self, model: str, task: str) -> Path:
        """The answers of a model that is being asked, a line for each batch."""
        return self.results(model, task) / "samples.partial.jsonl"

    def drift(self, model: str) -> Path:
        """How far a model's predictions are from the base's."""
        return self.evaluation / model / "drift.json"

    def all_checkpoints(self) -> list[Checkpoint]:
        """Every directory that is named like a checkpoint, oldest first, verified or not."""
        if not self.checkpoints.is_dir():
            return []
        found = [Checkpoint(p) for p in self.checkpoints.iterdir() if p.is_dir() and _STEP_NAME.fullmatch(p.name)]
        return sorted(found, key=lambda c: c.step)

    def newest_complete(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None when there is no checkpoint at all.

        Raises CheckpointError when there are some and none verifies: to start over at step 0 would destroy a run.
        """
        problems: list[str] = []
        listed: list[str] | None = None
        while listed != (names := [c.name for c in self.all_checkpoints()]):  # a live trainer may have pruned them
            listed, problems = names, []
            for name in reversed(names):
                checkpoint = Checkpoint(self.checkpoints / name)
                problem = checkpoint.verify()
                if problem is None:
                    return checkpoint
                problems.append(problem)
        if not problems:
            if self.latest_file.exists():
                raise CheckpointError(
                    f"{self.latest_file} names {self.latest_file.read_text().strip()!r}, but {self.checkpoints} holds "
                    "no checkpoint; restore it, or delete the run directory to start over"
                )
            return None
        raise CheckpointError(
            f"{self.checkpoints}: all {len(problems)} checkpoints are damaged:\n  "
            + "\n  ".join(problems)
            + "\nrestore one of them from a copy, or delete the run directory to start over"
        )

    def complete_checkpoints(self) -> list[Checkpoint]:
        """All checkpoints that verify, oldest first."""
        return [c for c in self.all_checkpoints() if c.verify() is None]

    def pointer(self, which: Literal["LATEST", "BEST"]) -> Checkpoint | None:
        """The checkpoint that a pointer file names, if there is one."""
        file = self.latest_file if which == "LATEST" else self.best_file
        if not file.exists():
            return None
        name = file.read_text().strip()
        path = self.checkpoints / name
        return Checkpoint(path) if _STEP_NAME.fullmatch(name) and path.is_dir() else None

    def point(self, which: Literal["LATEST", "BEST"], checkpoint: Checkpoint) -> None:
        """Replace a pointer file atomically."""
        write_atomic(self.latest_file if which == "LATEST" else self.best_file, checkpoint.name + "\n")

    def read_stop_verdict(self) -> StopVerdict | None:
        """What the driver that follows the training says of it, if it does; what cannot be read says nothing."""
        try:
            return StopVerdict(**read_json(self.stop_verdict))
        except (CheckpointError, ValidationError, TypeError, OSError):
            return None

    def task_results(self) -> Iterator[TaskResult]:
        """Every result on disk."""
        for path in sorted(self.evaluation.glob("*/*/result.json")):
            yield TaskResult(**read_json(path))

    def samples(self, model: str, task: str) -> list[Sample]:
        """The scored items of one model on one task, in the task's order."""
        return [Sample(**line) for line in read_json_lines(self.results(model, task) / "samples.jsonl")]
