"""Requests to stop that come while processes are being started: real processes, held at the moment in question."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# The command of a training has threads when it starts the ranks (those of the libraries that read its data), so no
# signal waits for its main thread to be ready.
_COMMAND = """
import sys, threading, time
from pathlib import Path
from distributed_ft.artifacts import RunDirectory
from launcher.plan import LaunchPlan, Process
from launcher.processes import run_plan

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
rank = "trap 'exit 75' TERM; echo begun; for i in $(seq 60); do sleep 0.05; done; echo done"
processes = (Process(("sh", "-c", rank)), Process(("sh", "-c", rank)))
sys.exit(run_plan(LaunchPlan(processes, 2), RunDirectory(Path(sys.argv[1])), "dft train", quiet=True))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_while_the_ranks_are_started_reaches_all_of_them(tmp_path: Path, rank: int) -> None:
    """The command is held as it starts a rank: that one's output is a pipe that nobody reads yet."""
    outputs = [tmp_path / "logs" / f"rank-{number}.out" for number in range(2)]
    outputs[0].parent.mkdir()
    os.mkfifo(outputs[rank])
    with subprocess.Popen([sys.executable, "-c", _COMMAND, str(tmp_path)], cwd=ROOT) as command:
        while not (heeds(command.pid, signal.SIGTERM) and (rank == 0 or holds(outputs[0], "begun"))):
            assert command.poll() is None
            time.sleep(0.002)
        command.send_signal(signal.SIGTERM)
        said = outputs[rank].read_text() + outputs[1 - rank].read_text()
        assert command.wait(30) == 75
    assert "done" not in said, "a rank was not asked"


def heeds(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of a signal."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def holds(path: Path, word: str) -> bool:
    return path.exists() and word in path.read_text()


_WORK = """
import signal, sys, time
from launcher.guard import guarded
from launcher.processes import stoppable

class Left:
    def __del__(self):
        signal.raise_signal(signal.SIGUSR1)

def work():
    with stoppable("for now"):
        {work}
    return 0

sys.exit(guarded(work))
"""
_SWALLOWED = {
    "by a library that goes on after any error": """
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            print("went on")""",
    "by a destructor": """
        left = Left()
        del left""",
}


@pytest.mark.parametrize("work", _SWALLOWED.values(), ids=_SWALLOWED)
def test_a_request_is_not_swallowed(work: str) -> None:
    done = subprocess.run([sys.executable, "-c", _WORK.format(work=work)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (75, "", "dft: stopped: for now")


_SLOW_END = """
import atexit, sys, time
from launcher.__main__ import run
atexit.register(lambda: (print("over", flush=True), time.sleep(0.5)))
sys.argv[1:] = ["no-such-verb"]
run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_request_when_a_command_is_over_leaves_its_exit_code(number: signal.Signals) -> None:
    arguments = [sys.executable, "-c", _SLOW_END]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"over\n"
        command.send_signal(number)
        assert command.wait(30) == 2
