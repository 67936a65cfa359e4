"""`dft demo`: the main job on the embedded model, from run.yaml to verdict, and what to look at afterwards."""

import json
import os
import shlex
import time
from importlib.resources import as_file, files
from pathlib import Path

from distributed_ft.artifacts import RunDirectory, read_json
from distributed_ft.config.load import load
from launcher import local
from launcher.plan import Start

_ONLY_TICKETS = ("name=demo-no-replay", "data.train=[{path: shipped:tickets/train.jsonl}]")


def demo(no_replay: bool, nproc: int, runs_dir: Path) -> int:
    """Train, judge and report; returns an exit code.

    Args:
        no_replay: leave the general data out of the mix, to see what the model forgets.
        nproc: processes that share the model (FSDP2).
        runs_dir: where the run directory goes; by default `runs/` in the working directory.
    """
    began = time.monotonic()
    overrides = [*(_ONLY_TICKETS if no_replay else ()), f"runs_dir={json.dumps(str(runs_dir))}"]
    with as_file(files("distributed_ft") / "assets" / "demo.yaml") as path:
        loaded = load(path, overrides)
    run = RunDirectory(Path(loaded.config.runs_dir) / loaded.config.name)
    _use_cpu_if_gpus_are_few(nproc)
    print(f"training LoRA on {nproc} FSDP processes: support tickets -> JSON{'' if no_replay else ', with replay'}")
    code = local.train(loaded, Start(nproc))
    if code == 0:
        print("\njudging the base, the base with examples, and every checkpoint")
        code = local.evaluate(run.path)
    if code == 0:
        conclude(run, time.monotonic() - began)
    return code


def _use_cpu_if_gpus_are_few(nproc: int) -> None:
    """The demo shows sharding over processes, also where there are fewer GPUs than that: then on the CPU."""
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < nproc:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def conclude(run: RunDirectory, seconds: float) -> None:
    """Write the report, and print the verdict and the commands with which to look further."""
    from distributed_ft.evaluation.report.write import write

    write(run.path)
    summary = read_json(run.report("json"))
    print(f"\nverdict: {summary['verdict']}")
    which = " --checkpoint latest" if summary["best_step"] is None else ""
    print(f"report:      {run.report('html')}")
    print(f"curves:      tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    print(f"talk to it:  dft chat {shlex.quote(str(run.path))}{which}")
    print(f"({seconds:.0f} s)")
