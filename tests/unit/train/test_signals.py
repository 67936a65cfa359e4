"""Requests to stop, in real processes: heard in a long C call, not heard by forked workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_IN_A_C_CALL = """
import ctypes, os, time
from distributed_ft.train.signals import StopRequest
stop = StopRequest().listen(lambda: os._exit(75))
{boundaries}
print("listening", flush=True)
ctypes.CDLL(None).sleep(3)  # returns early by a signal
ctypes.CDLL(None).usleep(900000)
"""

_WORKERS = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from distributed_ft.train.signals import StopRequest

class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.tensor(i)

stop = StopRequest().listen(lambda: None)
stop.at_boundaries()
seen = 0
for rows in DataLoader(Rows(), batch_size=2, num_workers=2):
    if seen == 0:
        print("first", flush=True)
    seen += len(rows)
print(seen, stop.requested)
"""


def started(source: str, said: str) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=root
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == said
    return process


def test_before_the_first_step_a_request_is_heard_while_the_main_thread_is_in_a_c_call() -> None:
    process = started(_IN_A_C_CALL.format(boundaries=""), "listening")
    time.sleep(0.1)
    begin = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 75
    assert time.monotonic() - begin < 0.8  # the call takes longer


def test_a_second_request_ends_a_process_that_nobody_watches_and_one_that_comes_at_once_is_the_same() -> None:
    source = _IN_A_C_CALL.format(boundaries="stop.at_boundaries()") + "time.sleep(60)"
    process = started(source, "listening")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.poll() is None
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_workers_of_a_data_loader_go_on_when_the_whole_process_group_is_signalled() -> None:
    process = started(_WORKERS, "first")
    os.killpg(process.pid, signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.split()) == (0, ["40", "True"])
