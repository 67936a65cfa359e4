"""Trainings started as a user starts them, in processes of their own, watched and interfered with from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, read_json_lines, sha256_of
from distributed_ft.config.load import load, load_resolved
from distributed_ft.parallel.world import World
from support.ranks import run_ranks
from support.tiny import prepare_run

LIMIT = 450.0  # seconds that a training may take


def write_run_yaml(folder: Path, base: Path, rows: Path, name: str = "run", **sections: Mapping[str, Any]) -> Path:
    """A short run with a checkpoint every third step, as `folder/NAME.yaml` (JSON is YAML)."""
    tree: dict[str, Any] = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(base), "dtype": "fp32"},
        "method": {"type": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
        "data": {"train": str(rows), "validation": 0.1, "seq_len": 96},
        "strategy": {"type": "ddp"},
        "optim": {"lr": 5e-3, "global_batch_size": 4, "micro_batch_size": 1, "max_steps": 24, "weight_decay": 0.01},
        "checkpoint": {"every": 3, "keep": 3},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(tree, indent=2))
    return path


class Training:
    """`python -m launcher train RUN --nproc N …`, running; as a context manager, nothing survives a failed test."""

    def __init__(self, run_yaml: Path, nproc: int = 2, *arguments: str, run: Path | None = None) -> None:
        self.started = time.time()
        name = run_yaml.stem
        self.run = RunDirectory(run or run_yaml.parent / "runs" / name)
        self.errors = run_yaml.parent / f"{name}.stderr"
        command = [sys.executable, "-m", "launcher", "train", str(run or run_yaml), "--nproc", str(nproc), *arguments]
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=run_yaml.parent, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.ranks().values()]:
            kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(LIMIT)

    def until(self, happens: Callable[[], object]) -> bool:
        """Wait for it; False when the training ended first."""
        deadline = time.monotonic() + LIMIT
        while not happens():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"nothing happened:\n{self.stderr}"
            time.sleep(0.002)
        return True

    def ranks(self) -> dict[int, int]:
        """Rank -> process id, of the ranks that live."""
        return {int(environment(pid)["RANK"]): pid for pid in processes_of(self.run) if "RANK" in environment(pid)}

    def reaches(self, step: int) -> Callable[[], bool]:
        return lambda: last_step(self.run) >= step

    def saves_after(self, step: int) -> Callable[[], bool]:
        """Whether files of a checkpoint beyond `step` are being written; what an earlier training left is none."""

        def saves() -> bool:
            for partial in self.run.checkpoints.glob(".step-*.partial"):
                try:
                    if int(partial.name[6:14]) > step and partial.stat().st_mtime > self.started:
                        return True
                except FileNotFoundError:
                    continue
            return False

        return saves


def dft(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """A command to its end."""
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=700)


def train(run_yaml: Path, nproc: int = 2, *arguments: str) -> tuple[int, str]:
    """Train to the end: exit code and stderr."""
    with Training(run_yaml, nproc, *arguments) as training:
        return training.wait(), training.stderr


def train_undisturbed(run_yaml: Path, nproc: int = 2) -> RunDirectory:
    """Train to the end by the same code without the commands around it (quicker): what other runs must equal."""
    run = prepare_run(load(run_yaml).config, nproc)
    run_ranks(nproc, _train_here, run=run)
    return run


def _train_here(world: World, run: RunDirectory) -> None:
    from distributed_ft.train.fit import fit
    from distributed_ft.train.preflight import data_for
    from distributed_ft.train.run import open_run
    from distributed_ft.train.signals import StopRequest

    config = load_resolved(run.config)
    opened = open_run(config, run, data_for(config, run), world, StopRequest())
    fit(opened)
    if opened.metrics is not None:
        opened.metrics.close()


def processes_of(run: RunDirectory) -> list[int]:
    """Processes whose command line names the run directory; a dead one that nobody has waited for is none."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                named = str(run.path).encode() in (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if named:
                found.append(int(folder.name))
    return found


def environment(pid: int) -> dict[str, str]:
    """A process's environment; empty when it is gone."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def gone(run: RunDirectory, seconds: float = 5.0) -> bool:
    """Whether no process of the run is left, after some seconds at most."""
    deadline = time.monotonic() + seconds
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not processes_of(run)


def last_step(run: RunDirectory) -> int:
    """The last step in metrics.jsonl, 0 before the first."""
    return max((line["step"] for line in read_json_lines(run.metrics)), default=0)


def curve(run: RunDirectory) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without the seconds."""
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in read_json_lines(run.metrics)]


def weights(run: RunDirectory) -> str:
    """sha256 of the newest checkpoint's weights."""
    newest = run.newest_complete()
    assert newest is not None
    (file,) = newest.model.glob("*.safetensors")
    return f"{newest.name} {sha256_of(file)}"
