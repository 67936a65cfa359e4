"""Worlds of real ranks: processes that form a gloo group over loopback and run a function each.

`run_ranks(2, function, x=1)` gives what `function(world, x=1)` returned on each rank. A rank is forked from a process
that has the imports done (they take seconds) and nothing else: no thread, no group, no tensor.
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 600.0  # seconds that a world may take
Answer = tuple[str, list[Any]]  # what went wrong or "", and each rank's result


def run_ranks(world_size: int, function: Callable[..., Any], on_cpu: bool = False, **arguments: Any) -> list[Any]:
    """Run `function(world, **arguments)`, importable from a test module, on `world_size` ranks; results by rank.

    `on_cpu`: hide the GPUs from them.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    name = f"{function.__module__}:{function.__qualname__}"
    environment = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    pickle.dump((world_size, name, environment, arguments, sys.path), server.stdin)
    server.stdin.flush()
    problem, results = pickle.load(server.stdout)
    assert not problem, problem
    return list(results)


@cache
def _server() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(TESTS)}
    environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # else importing pyarrow may start a thread
    command = [sys.executable, "-m", "support.ranks"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    import distributed_ft.train.fit
    import distributed_ft.train.preflight  # noqa: F401

    while True:
        try:
            world_size, name, environment, arguments, path = pickle.load(requests)
        except EOFError:  # pytest has ended
            return
        sys.path[:] = path
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
        pickle.dump(_run_world(world_size, name, environment, arguments), answers)
        answers.flush()


def _run_world(world_size: int, name: str, environment: dict[str, str], arguments: dict[str, Any]) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        common = {
            **environment,
            "WORLD_SIZE": str(world_size),
            "DFT_RENDEZVOUS": (Path(folder) / "rendezvous").as_uri(),
        }
        children = {_fork(rank, common, name, arguments, Path(folder)) for rank in range(world_size)}
        problem = _wait(children)
        results = []
        for rank in range(world_size):
            failure = Path(folder) / f"{rank}.failure"
            if failure.exists():
                problem += f"\n--- rank {rank}\n{failure.read_text()}"
            elif not problem:
                results.append(pickle.loads((Path(folder) / f"{rank}.result").read_bytes()))
        return problem, results


def _fork(rank: int, common: dict[str, str], name: str, arguments: dict[str, Any], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(2, 1)  # stdout carries the answers
        os.environ |= {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        from distributed_ft.parallel.world import form_world

        module, _, attribute = name.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        result = function(form_world(int(common["WORLD_SIZE"])), **arguments)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        code = 0
    except BaseException:
        (folder / f"{rank}.failure").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _wait(children: set[int]) -> str:
    """Wait for all; the first to fail ends the others. Returns what went wrong, or the empty string."""
    deadline, problem = time.monotonic() + LIMIT, ""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.discard(pid)
        if not problem and pid and status:
            problem = f"a rank ended with status {os.waitstatus_to_exitcode(status)}"
            deadline = min(deadline, time.monotonic() + 2)
        if time.monotonic() > deadline:
            problem = problem or f"not done after {LIMIT:.0f} s"
            for child in children:
                os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        if not pid:
            time.sleep(0.005)
    return problem


if __name__ == "__main__":
    from support import ranks

    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    ranks._serve(sys.stdin.buffer, output)
