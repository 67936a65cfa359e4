"""Work on chunks by several processes: in order, streamed, and never a process left behind."""

import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from distributed_ft.data import pool
from distributed_ft.data.pool import in_order
from distributed_ft.errors import DataError

PARENT = """
import os, time
from distributed_ft.data import pool

def work(chunk):
    os.write(1, b"%d\\n" % os.getpid())  # at once: two workers share the pipe
    time.sleep(30)

list(pool._together(work, iter(range(2)), 2))
"""

SHOWN = """
import time
from distributed_ft.data.pool import shown

with shown() as tell:
    for what, seconds in (("reading", 1.1), ("writing", 0.1)):
        tell(what, 0)
        time.sleep(seconds)
        tell(what, 2000)
"""


def together(work, chunks, workers=2):
    """By processes from the first chunk on, as `in_order` does once a second is over."""
    return pool._together(work, iter(chunks), workers)


def gone(pid):
    """Ended, if only in name: whoever inherits it may reap it late."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_results_come_in_the_order_of_the_chunks_whoever_is_done_first():
    def work(number):
        time.sleep(0.05 if number % 3 == 0 else 0)
        return number, os.getpid()

    found = list(together(work, range(12)))
    assert [number for number, _ in found] == list(range(12))
    assert os.getpid() not in {pid for _, pid in found}


def test_little_work_is_done_without_another_process():
    assert list(in_order(lambda n: (n, os.getpid()), range(5), workers=2)) == [(n, os.getpid()) for n in range(5)]


def test_more_work_is_shared_after_the_first_second(monkeypatch):
    monkeypatch.setattr(pool, "_ALONE", 0.0)
    found = list(in_order(lambda n: (n, os.getpid()), range(6), workers=2))
    assert [number for number, _ in found] == list(range(6))
    assert found[0][1] == os.getpid()
    assert os.getpid() not in {pid for _, pid in found[1:]}


def test_one_worker_is_this_process(monkeypatch):
    monkeypatch.setattr(pool, "_ALONE", 0.0)
    assert {pid for _, pid in in_order(lambda n: (n, os.getpid()), range(4), workers=1)} == {os.getpid()}


def test_no_chunks_give_no_results():
    assert list(in_order(str, [])) == []
    assert list(together(str, [])) == []


def test_what_the_work_raises_is_raised_here_after_the_results_before_it():
    def work(number):
        if number == 3:
            raise DataError("rows.jsonl:3: broken")
        return number

    found = []
    with pytest.raises(DataError, match=r"rows\.jsonl:3: broken"):
        found.extend(together(work, range(9)))  # extend keeps what came before
    assert found == [0, 1, 2]


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    def work(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(DataError, match="killed, most likely for want of memory"):
        list(together(work, range(4)))


def test_chunks_are_read_as_results_are_taken():
    read = []

    def chunks():
        for number in range(1000):
            read.append(number)
            yield number

    results = together(lambda number: number, chunks())
    for taken in range(20):
        assert next(results) == taken
        assert len(read) - taken <= 2 * 2 + 2  # two for each worker, and the one being submitted
    results.close()
    assert len(read) < 30


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(map(gone, workers))
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: all(map(gone, workers)))


def test_a_worker_leaves_an_interruption_to_its_parent():
    def work(number):
        for signal_number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), signal_number)
        return number

    assert list(together(work, range(3))) == [0, 1, 2]


def test_a_stream_that_is_given_up_leaves_no_process():
    results = together(lambda number: os.getpid(), range(100))
    workers = {next(results), next(results)}
    results.close()
    assert all(map(gone, workers))


def test_how_far_it_is_is_shown_on_a_terminal_alone_and_only_of_what_takes_longer_than_a_second():
    leader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    on_terminal = subprocess.run([sys.executable, "-c", SHOWN], stderr=terminal, timeout=60)
    os.set_blocking(leader, False)
    said = os.read(leader, 10_000)
    os.close(leader)
    os.close(terminal)
    assert on_terminal.returncode == 0
    assert b"reading: 2.00k rows" in said
    assert b"writing" not in said
    in_log = subprocess.run([sys.executable, "-c", SHOWN], stderr=subprocess.PIPE, timeout=60)
    assert (in_log.returncode, in_log.stderr) == (0, b"")
