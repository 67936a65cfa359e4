"""How well a run survives: interrupted on a real Slurm at chosen moments, and compared with itself uninterrupted.

    SLURM_CONF=… python -m benchmarks.preemption

submits one short training many times by `dft submit --until-done`, asks its job to stop (as Slurm does before the end
of its time) at another moment each time, waits until it is finished, and writes `docs/results/preemption.md` and
`benchmarks/results/preemption.json`. On a cluster of one's own: give `--submit` what a job needs there.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, read_json, read_json_lines, sha256_of
from launcher import attempts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "preemption.json"
TABLE = ROOT / "docs" / "results" / "preemption.md"
STEPS = 30
PATIENCE = 300.0  # seconds that a job may take
MOMENTS = ("tokenising", "loading", "first step", "training", "training", "training", "saving", "validating")


@dataclass(frozen=True)
class Interruption:
    """One run that was interrupted. step: completed when it was; redone: steps that were trained twice; seconds: from
    the request until the next step was trained; equal: whether the final weights are those of the uninterrupted run."""

    moment: str
    step: int
    redone: int
    seconds: float
    requeues: int
    equal: bool


def write_run(folder: Path, name: str, **sections: Any) -> Path:
    """A run.yaml in `folder` on the embedded model, with dropout, validations and many checkpoints."""
    tree = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "model": {"base": "shipped:base", "dtype": "fp32"},
        "method": {"type": "lora", "rank": 8, "dropout": 0.1},
        "data": {
            "train": "shipped:tickets/train.jsonl",
            "validation": "shipped:tickets/validation.jsonl",
            "seq_len": 128,
        },
        "strategy": {"type": "fsdp"},
        "optim": {"lr": 1e-3, "max_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2},
        "checkpoint": {"every": 10, "keep": 2},
        "evaluation": {"general": []},
    }
    tree |= {key: {**tree.get(key, {}), **value} for key, value in sections.items()}  # type: ignore[dict-item]
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(tree, indent=2))
    return path


def submit(run_yaml: Path, options: Sequence[str], env: dict[str, str] | None = None) -> RunDirectory:
    """`dft submit`; raises RuntimeError with its message when it refuses."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", str(run_yaml), *options],
        capture_output=True,
        text=True,
        env=env,
        cwd=run_yaml.parent,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return RunDirectory(Path(json.loads(run_yaml.read_text())["runs_dir"]) / run_yaml.stem)


def job_of(run: RunDirectory) -> str:
    return str(read_json(run.slurm / "job.json")["job"])


def finished(run: RunDirectory) -> bool:
    """Whether its jobs have come to an end; raises RuntimeError when it is not that of a finished run."""
    ends = [event for event in attempts.since_submission(attempts.history(run)) if event.event == "end"]
    if not ends or ends[-1].action.startswith(("requeued", "submitted", "left to Slurm")):
        return False
    if ends[-1].outcome != "finished":
        raise RuntimeError(f"{run.path}: {ends[-1].outcome}: {ends[-1].message}\n{said(run)[-3000:]}")
    return True


def said(run: RunDirectory) -> str:
    """What its jobs printed."""
    return "".join(path.read_text(errors="replace") for path in sorted(run.slurm.glob("*.out")))


def last_step(run: RunDirectory) -> int:
    return max((line["step"] for line in read_json_lines(run.metrics)), default=0)


def phase(run: RunDirectory) -> str:
    return str(read_json(run.progress)["phase"]) if run.progress.exists() else ""


def weights(run: RunDirectory) -> str:
    """sha256 of the newest checkpoint's weights, with its name."""
    newest = run.newest_complete()
    assert newest is not None
    (file,) = newest.model.glob("*.safetensors")
    return f"{newest.name} {sha256_of(file)}"


def until(happens: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.005)


def condition(moment: str, run: RunDirectory, at: int) -> Callable[[], bool]:
    """When the moment has come; `at`: a random step for those that have one."""
    match moment:
        case "tokenising":
            return lambda: (run.logs / "rank-0.log").exists()
        case "loading":
            return lambda: phase(run) == "loading"
        case "first step":
            return lambda: phase(run) == "training"
        case "training":
            return lambda: last_step(run) >= at
        case "saving":
            return lambda: any(run.checkpoints.glob(".step-*.partial"))
        case "validating":
            return lambda: phase(run) == "validating"
    raise AssertionError(moment)


def interrupt(
    run_yaml: Path, moment: str, options: Sequence[str], stop: Callable[[str], object], at: int, expected: str
) -> Interruption:
    """Submit a run, `stop` its job at a moment, wait until it is finished, and compare its weights.

    Raises RuntimeError when the job ends in another way, TimeoutError when nothing happens."""
    run = submit(run_yaml, options)
    if moment == "tokenising":
        shutil.rmtree(run.path.parent / ".cache")  # so that the job has to, and not `dft submit`
    until(condition(moment, run, at), f"{moment} does not come:\n{said(run)[-2000:]}")
    stop(job_of(run))
    asked, highest = time.monotonic(), last_step(run)
    until(lambda: len(_begun(run)) > 1, f"{moment}: not requeued:\n{said(run)[-3000:]}")
    resumed = _begun(run)[1].step or 0
    highest = max(highest, last_step(run))
    until(lambda: last_step(run) > resumed and phase(run) != "stopped", f"{moment}: does not go on")
    seconds = time.monotonic() - asked
    until(lambda: finished(run), f"{moment}: not finished:\n{said(run)[-3000:]}")
    requeues = attempts.requeues(attempts.history(run))
    return Interruption(moment, highest, highest - resumed, round(seconds, 1), requeues, weights(run) == expected)


def _begun(run: RunDirectory) -> list[attempts.Event]:
    return [event for event in attempts.history(run) if event.event == "begin"]


def signal_batch(job: str) -> None:
    """As `--signal=B:USR1@…` does."""
    subprocess.run(["scancel", "--batch", "-s", "USR1", job], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preemption", description=__doc__)
    parser.add_argument("--submit", default="--nodes 2 --gpus-per-node 2", help="options of `dft submit`")
    parser.add_argument("--seed", type=int, default=0, help="of the random steps")
    parser.add_argument("--folder", type=Path, help="on a file system that all nodes share")
    arguments = parser.parse_args()
    options = [*shlex.split(arguments.submit), "--until-done"]
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="dft-preemption-", dir=arguments.folder) as name:
        folder = Path(name)
        whole = submit(write_run(folder, "uninterrupted"), options)
        until(lambda: finished(whole), "the uninterrupted run does not end")
        expected, found = weights(whole), []
        for number, moment in enumerate(MOMENTS):
            at = chance.randint(2, STEPS - 3)
            one = interrupt(write_run(folder, f"run-{number}"), moment, options, signal_batch, at, expected)
            print(json.dumps(asdict(one)), flush=True)
            found.append(one)
    write(found, arguments.submit)
    return 0 if all(one.equal and one.requeues == 1 for one in found) else 1


def write(found: Sequence[Interruption], shape: str) -> None:
    """The table and the JSON."""
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True).stdout.strip()
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "slurm": version,
        "machine": f"{os.cpu_count()} cores, no GPU; all nodes are this machine",
        "job": f"dft submit {shape} --until-done; {STEPS} steps, a checkpoint every 10",
    }
    RESULTS.write_text(
        json.dumps({"schema": 1, **about, "interruptions": [asdict(one) for one in found]}, indent=2) + "\n"
    )
    lines = [
        "# Interrupted at any moment",
        "",
        f"Written by `python -m benchmarks.preemption` on {about['date']}: {version}, {about['machine']}.",
        f"`{about['job'].split(';')[0]}`; {about['job'].split('; ')[1]}, dropout 0.1.",
        "The job is asked to stop (SIGUSR1 to its batch script, as Slurm does before its time is over) at the moment",
        "named, is requeued by itself, and goes on. Slurm holds a requeued job for about 6 of the seconds.",
        "",
        "| interrupted while | after step | steps redone | seconds until it trains again | requeues | same weights |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one.moment} | {one.step} | {one.redone} | {one.seconds:.1f} | {one.requeues} | "
            f"{'yes, sha256' if one.equal else 'NO'} |"
            for one in found
        ),
        "",
    ]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
