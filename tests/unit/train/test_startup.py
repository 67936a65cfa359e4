import os
import subprocess
import sys
import time

import pytest

from distributed_ft.train.startup import BEGAN, Startup

PROGRAM = """
import time
time.sleep(0.3)  # as imports do
from distributed_ft.train.startup import Startup
startup = Startup()
startup.done("imports")
print(startup.parts["check"], startup.parts["imports"])
"""


def test_the_start_is_counted_from_the_command_and_from_the_birth_of_the_process() -> None:
    given = time.time() - 100
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, BEGAN: str(given)}, capture_output=True, text=True
    )
    check, imports = map(float, done.stdout.split())
    assert check >= 100 - 0.02  # the clock of processes ticks a hundred times a second
    assert imports >= 0.3 - 0.02
    assert check + imports <= time.time() - given


def test_parts_are_told_in_order_with_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BEGAN, raising=False)
    startup = Startup()
    for part in ("imports", "data", "model"):
        startup.done(part)
    told = startup.line()
    assert told.startswith(f"ready after {sum(startup.parts.values()):.1f} s: imports ")
    assert list(startup.parts) == ["imports", "data", "model"]
    startup.another()
    startup.done("data")
    assert list(startup.parts) == ["data"]
