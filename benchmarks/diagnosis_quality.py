"""Whether the diagnosis names what was planted: real trainings of the shipped tiny base that fail in a known way.

    python -m benchmarks.diagnosis_quality --work FOLDER [--seeds 3] [--only KIND …] [--again KIND …] [--kept]

Each run is prepared, trained, evaluated and diagnosed by the code of `dft train`, `dft eval` and `dft report`, one
after the other in this process, so that libraries are imported once (what is planted: benchmarks/diagnosis_plants.py).
A run that is evaluated in FOLDER is kept, and only diagnosed anew; a killed benchmark goes on where it was.
Required: 95% of the planted causes are named first, and no healthy run has any finding. Exit status 1 otherwise.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.diagnosis_plants import PLANTS, write_run
from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import load, load_resolved
from distributed_ft.errors import FtError
from distributed_ft.evaluation.diagnose import diagnose
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.report.collect import collect
from distributed_ft.model.load import quiet_libraries
from distributed_ft.parallel.world import World, form_world, leave
from distributed_ft.train import preflight
from distributed_ft.train.fit import fit
from distributed_ft.train.run import open_run
from distributed_ft.train.signals import StopRequest
from launcher import local
from launcher.plan import Start

REQUIRED = 0.95
HEALTHY = "healthy"
HEALTHY_PER_SEED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are, and stay")
    parser.add_argument("--seeds", type=int, default=3, help="of each kind; of healthy runs three times as many")
    parser.add_argument("--only", nargs="+", choices=PLANTS, default=list(PLANTS))
    parser.add_argument("--again", nargs="+", choices=PLANTS, default=[], help="train these anew")
    parser.add_argument("--kept", action="store_true", help="train nothing: judge the runs that are there")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "diagnosis_quality.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quiet_libraries()
    world = form_world(1)
    work = given.work.resolve()
    planned = [(plant, seed) for seed in range(given.seeds * HEALTHY_PER_SEED) for plant in PLANTS
               if plant in given.only and (plant == HEALTHY or seed < given.seeds)]  # fmt: skip
    if given.kept:
        planned = [(plant, seed) for plant, seed in planned if (work / "done" / f"{plant}-{seed}").is_file()]
    for plant in given.again:
        for path in (work / "runs").glob(f"{plant}-*"):
            shutil.rmtree(path)
    runs = []
    for plant, seed in planned:
        runs.append(one_run(work, plant, seed, world))
        print(f"{plant} {seed}: {', '.join(f['id'] for f in runs[-1]['found']) or 'no finding'}", file=sys.stderr)
    result = {"benchmark": "diagnosis_quality", "environment": harness.environment(), **judged(runs), "runs": runs}
    harness.write_result(given.out, result)
    print(table(result))
    return int(not result["passed"])


def one_run(work: Path, plant: str, seed: int, world: World) -> dict[str, Any]:
    """Train, evaluate and report one run, as far as that is not done; what was planted, and what was found."""
    name = f"{plant}-{seed}"
    done, folder = work / "done" / name, work / "runs" / name
    seconds: float | None = None
    if not (done.is_file() and folder.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        stopped = train(write_run(work, name, plant, seed), world)
        evaluated = _evaluated(folder)
        seconds = time.perf_counter() - began
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text("\n".join([f"{seconds:.1f}", stopped, evaluated]))
    told = done.read_text().split("\n")
    findings = diagnose(collect(folder))
    return {
        "planted": plant,
        "seed": seed,
        "seconds": float(told[0]),
        "stopped": told[1],
        "found": [{"id": f.id, "severity": f.severity, "confidence": f.confidence, "evidence": f.evidence}
                  for f in findings],
    }  # fmt: skip


def train(run_yaml: Path, world: World) -> str:
    """What `dft train` does, on the one process that we are; what stopped it, or nothing."""
    directory = local.prepare(load(run_yaml), Start())
    config = load_resolved(directory.config)
    torch.manual_seed(config.seed)
    run = open_run(config, directory, preflight.data_for(config, directory), world, StopRequest())
    try:
        fit(run)
    except FtError as error:
        return str(error).split("\n")[0]
    finally:
        if run.metrics is not None:
            run.metrics.close()
    return ""


def _evaluated(folder: Path) -> str:
    try:
        evaluate(RunDirectory(folder).path)
    except FtError as error:  # of a run that failed as it should: logits that are no numbers, no checkpoint
        return str(error).split("\n")[0]
    return ""


def judged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    planted = [run for run in runs if run["planted"] != HEALTHY]
    healthy = [run for run in runs if run["planted"] == HEALTHY]
    first = [bool(run["found"]) and run["found"][0]["id"] == run["planted"] for run in planted]
    accused = [run for run in healthy if run["found"]]
    share = sum(first) / len(first) if first else 1.0
    by_kind = {
        kind: f"{sum(f for f, run in zip(first, planted, strict=True) if run['planted'] == kind)} of "
        f"{sum(run['planted'] == kind for run in planted)}"
        for kind in dict.fromkeys(run["planted"] for run in planted)
    }
    return {
        "planted_runs": len(planted),
        "named_first": sum(first),
        "share_named_first": round(share, 4),
        "by_kind": by_kind,
        "healthy_runs": len(healthy),
        "healthy_accused": len(accused),
        "passed": share >= REQUIRED and not accused,
    }


def table(result: dict[str, Any]) -> str:
    rows = [[kind, found] for kind, found in result["by_kind"].items()]
    rows.append(["healthy, accused", f"{result['healthy_accused']} of {result['healthy_runs']}"])
    wrong = [
        f"{run['planted']} {run['seed']}: {', '.join(f['id'] for f in run['found']) or 'no finding'}"
        for run in result["runs"]
        if (run["found"][0]["id"] if run["found"] else HEALTHY) != run["planted"]
    ]
    share = f"{result['named_first']} of {result['planted_runs']} planted causes are named first"
    return "\n".join([harness.table(["planted", "named first"], rows), share, *wrong])


if __name__ == "__main__":
    leave(main())
