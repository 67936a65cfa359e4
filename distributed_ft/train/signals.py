"""Being asked to stop: a handler only raises a flag, the ranks agree on it at the next step boundary.

The second request ends the process at once: whoever asks twice does not want to wait, and a half-written checkpoint is
never mistaken for one.
"""

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`requested` turns True at the first SIGINT, SIGTERM or SIGUSR1 after `listen()`."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> "StopRequest":
        """Install the handlers (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
