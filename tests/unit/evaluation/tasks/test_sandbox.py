"""What code that a model wrote can do to the machine, tried for real: nothing."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.evaluation.sandbox import Limits, Outcome, problem, run_python

pytestmark = pytest.mark.skipif(problem() is not None, reason=f"no sandbox here: {problem()}")
SHORT = Limits(seconds=1, memory=256)
Try = Callable[..., Outcome]


def attempt(program: str, limits: Limits = SHORT) -> Outcome:
    return run_python(program, limits)


def test_an_ordinary_program_runs_with_the_standard_library_threads_and_its_own_folder() -> None:
    program = """
import asyncio, collections, datetime, decimal, hashlib, heapq, itertools, json, math, random, re, statistics, threading
async def wait():
    await asyncio.sleep(0.01)
    return 'slept'
said = []
thread = threading.Thread(target=said.append, args=('threaded',))
thread.start(); thread.join()
open('own.txt', 'w').write('kept')
print(asyncio.run(wait()), said, open('own.txt').read(), math.comb(5, 2))
"""
    outcome = attempt(program)
    assert (outcome.code, outcome.output.strip()) == (0, "slept ['threaded'] kept 10")


def test_two_runs_of_one_program_agree_on_the_order_of_sets() -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert attempt(program).output == attempt(program).output


def test_no_network_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        outcome = attempt(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))")
        assert outcome.code == 1
        assert "PermissionError" in outcome.output
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "call",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair(type=socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    ],
)
def test_no_other_socket_is_made(call: str) -> None:
    assert "PermissionError" in attempt(f"import socket\n{call}").output


def test_a_fork_bomb_makes_no_process() -> None:
    program = """
import os
made = 0
for _ in range(1000):
    try:
        if os.fork() == 0:
            os._exit(0)
        made += 1
    except OSError:
        pass
print(made)
"""
    assert attempt(program).output.strip() == "0"
    assert "PermissionError" in attempt("import subprocess\nsubprocess.run(['true'])").output
    bare = "import ctypes\nprint(ctypes.CDLL(None).syscall({number}, 17, 0, 0, 0, 0))"
    for number in (56, 57, 58, 435) if os.uname().machine == "x86_64" else (220, 435):
        assert attempt(bare.format(number=number)).output.strip() == "-1"


def test_a_bomb_of_threads_ends_at_the_limit_of_memory() -> None:
    program = """
import threading, time
for number in range(100_000):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
    outcome = attempt(program)
    assert outcome.code != 0


def test_a_hog_of_memory_gets_a_memory_error() -> None:
    outcome = attempt("held = []\nwhile True: held.append(bytearray(2**20))")
    assert outcome.code == 1
    assert "MemoryError" in outcome.output


def test_an_endless_loop_is_ended_by_its_cpu_time_and_a_sleeper_by_the_clock() -> None:
    assert attempt("while True: pass").code == -9
    before = time.monotonic()
    assert attempt("import time\ntime.sleep(1000)", Limits(seconds=0.1)).code is None
    assert time.monotonic() - before < 60


def test_nothing_outside_its_folder_is_written_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    tmp_path.chmod(0o777)
    kept.chmod(0o666)
    for call in (f"open({str(kept)!r}, 'w')", f"open({str(tmp_path / 'new')!r}, 'w')", f"os.unlink({str(kept)!r})"):
        assert "PermissionError" in attempt(f"import os\n{call}").output
    for call in ("open('/tmp/from-the-sandbox', 'w')", "os.mkdir('/tmp/from-the-sandbox')", "os.mkdir('../beside')"):
        assert "PermissionError" in attempt(f"import os\n{call}").output
    assert "Error" in attempt(f"import os\nos.link({str(kept)!r}, 'here')").output
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "mine"


def test_a_flood_of_output_or_of_a_file_is_cut_off() -> None:
    assert attempt("while True: print('x' * 1000)").code != 0
    assert "File too large" in attempt("open('big', 'w').write('x' * 10**8)").output


def test_no_secret_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.setenv("API_KEY", "hunter2")
    outcome = attempt("import os\nprint(dict(os.environ))")
    assert outcome.code == 0
    assert "hunter2" not in outcome.output
    for path in (secret, "/etc/passwd", "/etc/shadow", Path.home() / ".ssh", f"/proc/{os.getpid()}/environ", "/proc"):
        outcome = attempt(f"import os\np = {str(path)!r}\nprint(os.listdir(p) if os.path.isdir(p) else open(p).read())")
        assert outcome.code == 1, path
        assert "hunter2" not in outcome.output
    inherited = "import os\nfor fd in range(3, 64):\n  try: print(os.read(fd, 9))\n  except OSError: pass"
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        assert attempt(inherited).output == ""


def test_no_other_process_is_signalled_or_looked_into() -> None:
    for call in ("os.kill(os.getppid(), 9)", f"os.kill({os.getpid()}, 9)", "os.kill(-1, 9)", "os.killpg(0, 9)"):
        assert "PermissionError" in attempt(f"import os\n{call}").output
    limits = f"import resource\nresource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (1, 1))"
    assert "Error" in attempt(limits).output
    assert "Error" in attempt(f"import os\nos.pidfd_open({os.getpid()})").output


def test_no_right_comes_back() -> None:
    program = """
import ctypes, resource
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000), libc.mount(b'none', b'.', b'tmpfs', 0, None), libc.setuid(1), libc.chroot(b'.'))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""
    outcome = attempt(program)
    told = outcome.output.split()[:4]
    assert [told[0], told[1], told[3]] == ["-1", "-1", "-1"]
    assert outcome.code == 1  # the limit of memory stays


def test_nothing_is_left_behind() -> None:
    before = set(Path("/tmp").glob("sandbox-*"))
    attempt("import time\nopen('file', 'w').write('x')\ntime.sleep(1000)", Limits(seconds=0.1))
    assert set(Path("/tmp").glob("sandbox-*")) <= before
