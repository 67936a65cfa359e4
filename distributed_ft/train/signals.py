"""Being asked to stop: a handler only raises a flag, the ranks agree on it at the next step boundary.

The second request ends the process at once: whoever asks twice does not want to wait, and a half-written checkpoint is
never mistaken for one. Signals within a second are one request: a batch system that signals every process of a job
reaches a rank directly and once more through its launcher.
"""

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """`requested` turns True at the first SIGINT, SIGTERM or SIGUSR1 after `listen()`."""

    def __init__(self) -> None:
        self.requested = False
        self._last = float("-inf")

    def listen(self) -> "StopRequest":
        """Install the handlers (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < SAME_REQUEST_SECONDS:
            return
        if self.requested:
            os._exit(128 + number)
        self.requested, self._last = True, now
