"""How long it takes from the command to the first step, by part."""

import os
import time
from pathlib import Path

BEGAN = "DFT_BEGAN"  # variable of the environment: when the command was given, in seconds since 1970


class Startup:
    """Seconds of this rank's start by part, in order. What the command did before there were ranks (`check`) is known
    where `dft train` started them."""

    def __init__(self) -> None:
        born = time.time() - _age()
        self._last = born
        self.parts: dict[str, float] = {}
        given = os.environ.get(BEGAN)
        if given is not None:
            self.parts["check"] = max(0.0, born - float(given))

    def done(self, part: str) -> None:
        """A part is over, which began when the one before was."""
        now = time.time()
        self.parts[part] = now - self._last
        self._last = now

    def another(self) -> None:
        """Another run begins in this process."""
        self.parts, self._last = {}, time.time()

    def line(self) -> str:
        """`ready after 24.1 s: check 9.8, imports 8.3, data 0.1, processes 0.9, model 5.0`."""
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"ready after {sum(self.parts.values()):.1f} s: {parts}"


def _age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
