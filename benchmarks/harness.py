"""What every benchmark here shares: fresh processes, interleaved repeats, statistics, and a result file that says on
what it was measured.

A worker is a module run as `python -m benchmarks.NAME ARGUMENTS… OUT`, once a rank; it writes its measurements with
`report` into OUT. All times are wall seconds of `time.perf_counter`.
"""

import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from launcher.plan import local_plan

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "numpy",
    "accelerate",
    "trl",
    "datasets",
    "tokenizers",
    "pyarrow",
    "rensa",
    "lm_eval",
)
TIMEOUT_SECONDS = 180.0  # of one fresh process group, unless told

Measurement = dict[str, Any]


class WorkerError(RuntimeError):
    """A measured process ended with an error; the message is the end of what it wrote."""


def run_fresh(
    module: str, arguments: Sequence[str], num_processes: int = 1, timeout: float = TIMEOUT_SECONDS
) -> list[Measurement]:
    """Start `module` in fresh processes, wait, and return what each rank reported.

    Raises WorkerError when a rank fails, or not all are done after `timeout` seconds; the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as folder:
        out = Path(folder)
        plan = local_plan(module, (*arguments, str(out)), num_processes, out / "rendezvous")
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "HF_HUB_OFFLINE": "1"}
        children = []
        for rank, process in enumerate(plan.processes):
            with (out / f"rank-{rank}.log").open("wb") as log:
                env = {**os.environ, **meeting, **process.env}
                children.append(subprocess.Popen(process.argv, env=env, stdout=log, stderr=log, cwd=ROOT))
        try:
            _wait(children, out, timeout)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
        return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]


def report(out: Path, measurement: Measurement) -> None:
    """Called by a worker at its end: hand this rank's measurement to the driver."""
    rank = int(os.environ.get("RANK", "0"))
    (out / f"rank-{rank}.json").write_text(json.dumps(measurement))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    given = work()
    return given, {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}


def interleaved(
    arms: Mapping[str, Callable[[], list[Measurement]]], repeats: int
) -> dict[str, list[list[Measurement]]]:
    """Run A B … A B … `repeats` times, so that a machine that drifts drifts for all; ranks' measurements by arm."""
    results: dict[str, list[list[Measurement]]] = {name: [] for name in arms}
    for repeat in range(repeats):
        for name, run in arms.items():
            begin = time.perf_counter()
            results[name].append(run())
            print(f"  repeat {repeat + 1}/{repeats}  {name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def memory_bytes(field: str) -> int:
    """This process's VmRSS (resident now) or VmHWM (resident at most, since its exec) from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def environment() -> dict[str, Any]:
    """What the figures depend on, without the machine's name."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--", "distributed_ft", "launcher", "benchmarks/*.py")),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "device": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "cores / processes"),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """The result as readable JSON, replaced in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
    print(f"wrote {path}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal: the first to the left, figures to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    cells = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in [cells[0], ["-" * width for width in widths], *cells[1:]])


def milliseconds(seconds: Mapping[str, float]) -> str:
    """`12.3 (12.0-12.9)`: median, minimum and maximum."""
    return f"{seconds['median'] * 1e3:.1f} ({seconds['min'] * 1e3:.1f}-{seconds['max'] * 1e3:.1f})"


def _wait(children: Sequence[subprocess.Popen[bytes]], out: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        codes = [child.poll() for child in children]
        for rank, code in enumerate(codes):
            if code:
                raise WorkerError(f"rank {rank} ended with {code}:\n{_end_of(out / f'rank-{rank}.log')}")
        if None not in codes:
            return
        if time.monotonic() > deadline:
            raise WorkerError(f"not done after {timeout:.0f} s:\n{_end_of(out / 'rank-0.log')}")
        time.sleep(0.05)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
