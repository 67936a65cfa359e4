"""`python -m launcher.node RUN`: the agent that `srun` starts once on each node of a job.

It looks at the node, starts torchrun (or accelerate) there, passes requests to stop on to the ranks alone, and leaves
word of how they ended (`launcher.attempts`). It ends with 1 only after a fault, on which `srun` ends the other nodes.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import cast

from distributed_ft.artifacts import RunDirectory, host_name, read_json
from distributed_ft.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, EXIT_USER, FtError
from launcher import attempts, plan
from launcher.attempts import Job, NodeReport
from launcher.foreign import launched
from launcher.plan import Launcher, Place, Start
from launcher.processes import heeding
from launcher.watch import Ending

FIRST_PORT, PORTS = 10_000, 20_000  # below those that the system hands out for connections
REMIND_SECONDS = 1.0
GIVE_UP_SECONDS = 30.0  # for a pre-flight that was asked to stop


def main() -> int:
    """0 unless something failed here: what is meant for the user, or was asked for, is no fault in srun's eyes."""
    with heeding() as asked:
        run, job = RunDirectory(sys.argv[1]), Job.of_environment()
        threading.Thread(target=_remind, args=(job.stop_file(run), asked), daemon=True).start()
        try:
            said = _report(run, job, asked)
        except FtError as error:
            said = NodeReport(node=host_name(), code=EXIT_USER, message=str(error))
        if said.message:
            print(f"dft: {said.message}", file=sys.stderr, flush=True)
        if len(asked) > 1:  # what was cut short was asked to stop
            said = said.model_copy(update={"code": EXIT_STOPPED})
        try:
            attempts.report(run, job, said.model_copy(update={"at": attempts.now()}))
        except OSError as error:  # of a node that cannot write; the others can still say so, if srun lets them
            print(f"dft: {host_name()} cannot write its report: {error}", file=sys.stderr, flush=True)
            time.sleep(GIVE_UP_SECONDS / 3)
    return EXIT_DONE if said.code in (EXIT_DONE, EXIT_STOPPED, EXIT_USER) else EXIT_FAULT


def _remind(stop_file: Path, asked: list[int]) -> None:
    """A request that srun lost, as it came before this process could hear, is in a file."""
    while not asked:
        if stop_file.exists():
            os.kill(os.getpid(), signal.SIGUSR1)
            return
        time.sleep(REMIND_SECONDS)


def place_of(job: Job, node: str, processes: int, host: str) -> Place:
    """Where a node stands. The port is the job's own, and another one after a restart: two jobs that share a node, or a
    former start that lingers, never meet."""
    slot = (job.serial * 31 + job.restart) % (PORTS // 2)
    return Place(
        node=job.nodes.index(node),
        num_nodes=len(job.nodes),
        num_ranks=None if "SLURM_HET_SIZE" in os.environ else processes * len(job.nodes),
        host=host,
        port=FIRST_PORT + 2 * slot,  # the next one is the pre-flight's
        id=f"{job.number}.{job.restart}",
    )


def _report(run: RunDirectory, job: Job, asked: list[int]) -> NodeReport:
    node = host_name()
    processes = int(os.environ.get("DFT_PROCESSES_PER_NODE") or os.environ.get("SLURM_GPUS_ON_NODE") or 1)
    place = place_of(job, node, processes, os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or job.nodes[0])
    if os.environ.get("DFT_PREFLIGHT", "1") != "0":
        found = _preflight(run, job, place, processes, asked)
        if found.code != EXIT_DONE:
            return found
    if asked:
        return NodeReport(node=node, code=EXIT_STOPPED)
    if place.num_ranks is None and os.environ.get("DFT_LAUNCHER") == "accelerate":
        message = "accelerate wants to know how many processes there are in all, which a heterogeneous job does not say"
        return NodeReport(node=node, code=EXIT_USER, message=f"{message}; use LAUNCHER=torchrun")
    start = Start(processes, cast(Launcher, os.environ.get("DFT_LAUNCHER") or "torchrun"))
    with tempfile.TemporaryDirectory(prefix="dft-") as folder:
        again = f"dft submit {shlex.quote(str(run.path))}"
        launch = plan.launcher_plan(run.path, start, again, Path(folder) / "roll", place)
        ended = launched(launch, run, again, requests=asked)
    return _said(node, ended)


def _said(node: str, ended: Ending) -> NodeReport:
    return NodeReport(
        node=node, code=ended.code, message=ended.message, rank=ended.rank, step=ended.step, cause=ended.cause
    )


def _preflight(run: RunDirectory, job: Job, place: Place, processes: int, asked: list[int]) -> NodeReport:
    """One process of the pre-flight; the nodes come to one judgement, which is in a file of the job's."""
    out = job.folder(run) / "preflight.json"
    environment = {
        **os.environ,
        "RANK": str(place.node),
        "WORLD_SIZE": str(place.num_nodes),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port + 1),
        "DFT_DEVICES": str(processes),
        "DFT_NODE_NAMES": ",".join(job.nodes),
    }
    node = job.nodes[place.node]
    command = [sys.executable, "-m", "distributed_ft.train.allocation", str(run.path), "--out", str(out)]
    code = _wait(subprocess.Popen(command, env=environment, start_new_session=True), asked)
    if asked or code == EXIT_STOPPED:  # another node heard it first
        return NodeReport(node=node, code=EXIT_STOPPED)
    said = read_json(out) if out.exists() else {}
    if code == EXIT_BAD_NODE:
        return NodeReport(node=node, code=code, bad_nodes=said.get("bad_nodes", {}))
    if code in (EXIT_DONE, EXIT_USER):
        return NodeReport(node=node, code=code, message=said.get("problem", ""))
    cause = said.get("fault") or f"pre-flight: exit code {code}"
    return NodeReport(node=node, code=EXIT_FAULT, cause=cause, message=f"the pre-flight of {node} failed ({cause})")


def _wait(child: "subprocess.Popen[bytes]", asked: list[int]) -> int:
    """The pre-flight has nothing to save: a request to stop is passed on once, then the process is ended."""
    deadline = None
    while child.poll() is None:
        if asked and deadline is None:
            child.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + GIVE_UP_SECONDS
        if len(asked) > 1 or (deadline is not None and time.monotonic() > deadline):
            child.kill()
        time.sleep(0.05)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
