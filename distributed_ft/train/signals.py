"""Being asked to stop: heard at once by a thread, acted upon where nothing is lost.

The interpreter runs a handler only when the main thread comes back from the C call that it is in (a collective, the
reading of a file); the number of the signal, though, is written at once to a file descriptor, which a thread reads.
Before the first step of a process there is nothing to lose, so a request ends it there and then. From then on it only
raises a flag, on which the ranks agree at a step boundary or between two batches of a validation.

The second request ends the process at once: whoever asks twice does not want to wait, and a half-written checkpoint is
never mistaken for one. Under a launcher of ours it is the launcher who does that. Signals that come close together are
one request: a batch system that signals every process of a job reaches a rank directly and once more through its
launcher.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from distributed_ft import beats, roll

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`requested` turns True at the first SIGINT, SIGTERM or SIGUSR1 after `listen()` and `at_boundaries()`."""

    _asked = False

    @property
    def requested(self) -> bool:
        """Whether to stop; the loop asks once before each step."""
        return self._asked

    @property
    def pending(self) -> bool:
        """The same, for whoever asks between two steps."""
        return self._asked

    def listen(self, end_now: Callable[[], None], tell: Callable[[], None] = lambda: None) -> "StopRequest":
        """Hear requests from now on (main thread only, once a process); one that comes before `at_boundaries` calls
        `end_now`, in another thread, which must not return. Processes that are forked from this one ignore them.

        `tell`, in that thread too, answers a SIGQUIT of a launcher of ours."""
        self._at_boundaries, self._turn = False, threading.Lock()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watched = beats.VARIABLE in os.environ
        for number in (*STOP_SIGNALS, *((signal.SIGQUIT,) if watched else ())):
            signal.signal(number, lambda *_: None)  # the thread has heard it
        os.register_at_fork(after_in_child=_be_deaf)
        threading.Thread(target=self._hear, args=(reading, end_now, tell), name="signals", daemon=True).start()
        return self

    def at_boundaries(self) -> None:
        """From now on there are steps to lose: a request is a flag."""
        if "_turn" in vars(self):
            with self._turn:
                self._at_boundaries = True

    def _hear(self, reading: int, end_now: Callable[[], None], tell: Callable[[], None]) -> None:
        last = float("-inf")
        while True:
            for number in os.read(reading, 64):
                if number == signal.SIGQUIT:
                    tell()
                now = time.monotonic()
                if number not in STOP_SIGNALS or now - last < roll.same_request_seconds():
                    continue
                last = now
                with self._turn:
                    if self._asked:
                        if beats.VARIABLE not in os.environ:
                            os._exit(128 + number)
                        continue
                    self._asked = True
                    if not self._at_boundaries:
                        end_now()


def _be_deaf() -> None:
    """In a forked child (a data-loader worker): its parent decides when it ends, whoever is signalled with it."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
