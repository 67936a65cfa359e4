"""A real Slurm on this machine: munge, slurmctld and four slurmd on loopback, from Debian's packages.

    python tests/support/cluster.py up|down|kill NODE|start NODE

Everything lies in one directory (DFT_SLURM_STATE, else /tmp/dft-slurm-UID; short, as sockets are in it) and is ended by
recorded process ids. `up` starts only what is not running. The nodes have four GPUs that are none (/dev/null), so that
Slurm counts and hands them out. Partitions: main; short (two minutes); low, which high pre-empts by requeueing.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NODES = tuple(f"node{number}" for number in range(1, 5))
CPUS, GPUS, MEMORY_MB = 4, 4, 4000
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
FIRST_PORT = 17_000
END_SECONDS = 10.0  # for a daemon to end before it is killed

CONFIG = """\
ClusterName=dft
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={state}/munge/munge.socket,cred_expire=5
MailProg=/bin/true
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd-%n.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=5
MessageTimeout=2
InactiveLimit=0
KillWait=10
MinJobAge=3600
BatchStartTimeout=10
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory={memory} \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=2 State=UP PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
"""


class Cluster:
    """A cluster whose files are in `state`."""

    def __init__(self, state: Path | None = None) -> None:
        named = os.environ.get("DFT_SLURM_STATE") or f"/tmp/dft-slurm-{os.getuid()}"
        self.state = (state or Path(named)).absolute()
        assert len(str(self.state)) <= 70, f"{self.state}: too long for the sockets in it"
        self.config = self.state / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment of whoever talks to it; nothing of a job that this may run in."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**clean, "SLURM_CONF": str(self.config), "PATH": f"{clean['PATH']}:/usr/sbin:/sbin"}

    @property
    def running(self) -> bool:
        """Whether any of its Slurm daemons is."""
        names = {"slurmctld": "slurmctld", **{f"slurmd-{node}": f"-N {node}" for node in NODES}}
        return any(self._pid(name, word) is not None for name, word in names.items())

    # --- up and down ---

    def up(self) -> None:
        """Start what is not running, and wait until every node is ready."""
        install()
        for folder in ("munge", "ctld", "run", "log", "dev", *(f"spool/{node}" for node in NODES)):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        for way in (self.state, self.state / "munge"):
            way.chmod(0o755)  # or munged refuses: its socket must be within everybody's reach
        key = self.state / "munge" / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        if not self.config.exists() or not self.running:  # daemons that live keep their ports
            self._configure()
        if self._pid("munged", str(self.state)) is None:
            self._start_munge()
        if self._pid("slurmctld", "slurmctld") is None:
            self._run("slurmctld", "-i", "-f", str(self.config))
        for node in NODES:
            self.start(node)
        wait(self._all_ready, 60, f"the nodes did not come up; see {self.state}/log")

    def down(self) -> None:
        """End the jobs, then the daemons, then what they left behind."""
        if self._pid("slurmctld", "slurmctld") is not None:
            jobs = self._ask("squeue", "-h", "-o", "%A").split()
            if jobs:
                self._ask("scancel", "--full", "-s", "KILL", *jobs)
                self._ask("scancel", *jobs)
                wait(lambda: not self._ask("squeue", "-h", "-o", "%A").split(), 15, "", strict=False)
        for node in NODES:
            self._end(f"slurmd-{node}", f"-N {node}")
        self._end("slurmctld", "slurmctld")
        for pid in self._step_daemons():
            kill(pid)
        self._end("munged", str(self.state))

    def start(self, node: str) -> None:
        """Power a node on, if it is off."""
        if self._pid(f"slurmd-{node}", f"-N {node}") is None:
            self._run("slurmd", "-N", node, "-f", str(self.config))

    def kill(self, node: str) -> None:
        """Power a node off: its daemon, its step daemons and every task die by SIGKILL."""
        daemon = self._pid(f"slurmd-{node}", f"-N {node}")
        if daemon is not None:
            kill(daemon)
        (self.state / "run" / f"slurmd-{node}.pid").unlink(missing_ok=True)
        log = str(self.state / "log" / f"slurmd-{node}.log")
        steps = [pid for pid in self._step_daemons() if log in open_files(pid)]
        tasks = [pid for pid in pids() if f"SLURMD_NODENAME={node}" in environment(pid) and self._ours(pid)]
        for pid in (*steps, *tasks):
            kill(pid)

    # --- jobs ---

    def submit(self, script: Path, *options: str) -> str:
        """The job's number."""
        return self._ask("sbatch", "--parsable", *options, str(script), check=True).strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by key; empty when the job is not known."""
        return dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", self._ask("scontrol", "-o", "show", "job", job)))

    def state_of(self, job: str) -> str:
        return self.show(job).get("JobState", "")

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Wait until the job is in one of the states; which one."""
        wait(lambda: self.state_of(job) in states, seconds, f"job {job} is {self.state_of(job)}, not {states}")
        return self.state_of(job)

    def signal(self, job: str, name: str) -> None:
        """To the batch script alone, at once, as `--signal=B:` does when the time is nearly over. (scancel ends with 1
        for a task of an array, though it has sent it.)"""
        self._ask("scancel", "--batch", "-s", name, job, check="_" not in job)

    def cancel_all(self) -> None:
        """What a failed test left."""
        jobs = self._ask("squeue", "-h", "-o", "%A").split()
        if jobs:
            self._ask("scancel", *jobs)
            wait(lambda: not self._ask("squeue", "-h", "-o", "%A").split(), 30, f"jobs {jobs} do not end")

    # --- pieces ---

    def _configure(self) -> None:
        port = free_ports(1 + len(NODES))
        values: dict[str, object] = {"state": self.state, "user": pwd.getpwuid(os.getuid()).pw_name}
        values |= {"port": port, "first": port + 1, "last": port + len(NODES), "nodes": f"node[1-{len(NODES)}]"}
        values |= {"cpus": CPUS, "memory": MEMORY_MB, "gpus": GPUS}
        self.config.write_text(CONFIG.format(**values))
        for number in range(GPUS):
            device = self.state / "dev" / f"nvidia{number}"
            if not device.is_symlink():
                device.symlink_to("/dev/null")
        devices = f"File={self.state}/dev/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env"
        (self.state / "gres.conf").write_text(f"NodeName=node[1-{len(NODES)}] Name=gpu {devices}\n")

    def _start_munge(self) -> None:
        folder = self.state / "munge"
        socket_file = folder / "munge.socket"
        for leftover in (socket_file, folder / "munge.socket.lock"):
            leftover.unlink(missing_ok=True)
        self._run(
            "munged",
            f"--key-file={folder}/munge.key",
            f"--socket={socket_file}",
            f"--pid-file={self.state}/run/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )
        wait(lambda: bool(self._ask("munge", "-n", "-S", str(socket_file))), 15, "munged does not answer")

    def _all_ready(self) -> bool:
        states = self._ask("sinfo", "-h", "-p", "main", "-N", "-o", "%T").split()
        return len(states) == len(NODES) and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def _pid(self, name: str, word: str) -> int | None:
        """The recorded process, if it lives and its command line has the word."""
        file = self.state / "run" / f"{name}.pid"
        pid = int(file.read_text()) if file.exists() and file.read_text().strip() else 0
        return pid if pid and word in command_line(pid) else None

    def _end(self, name: str, word: str) -> None:
        pid = self._pid(name, word)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            wait(lambda: not command_line(pid), END_SECONDS, "", strict=False)
            kill(pid)

    def _step_daemons(self) -> list[int]:
        return [pid for pid in pids() if command_line(pid).startswith("slurmstepd: [") and self._ours(pid)]

    def _ours(self, pid: int) -> bool:
        return f"SLURM_CONF={self.config}" in environment(pid)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command[0]}: {done.stderr or done.stdout}"

    def _ask(self, *command: str, check: bool = False) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def install() -> None:
    """Debian's packages, where something is missing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if not missing:
        return
    if os.getuid() != 0:
        sys.exit(f"{', '.join(missing)} missing, and only root can install: apt-get install {' '.join(PACKAGES)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    if subprocess.run(command, env=env, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], env=env, capture_output=True)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"Slurm could not be installed:\n{done.stderr[-2000:]}")


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(FIRST_PORT, FIRST_PORT + 3000, 20):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def wait(happens: Callable[[], object], seconds: float, complaint: str, strict: bool = True) -> None:
    """Until it happens; AssertionError after so many seconds, unless not `strict`."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            assert not strict, complaint
            return
        time.sleep(0.1)


def pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def command_line(pid: int) -> str:
    """Empty when the process is gone, or dead and not waited for."""
    return _of(pid, "cmdline").replace("\0", " ")


def environment(pid: int) -> list[str]:
    return _of(pid, "environ").split("\0")


def open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _of(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    cluster = Cluster()
    match sys.argv[1:]:
        case ["up"]:
            cluster.up()
            print(f"export SLURM_CONF={cluster.config}")
        case ["down"]:
            cluster.down()
        case ["kill" | "start" as what, node] if node in NODES:
            getattr(cluster, what)(node)
        case _:
            sys.exit(__doc__)
