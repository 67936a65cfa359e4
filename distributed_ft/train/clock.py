"""Where the time of a step goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Adds up wall seconds by part of a step: data, forward, backward, step, checkpoint, validation.

    On a GPU the parts are what the host waited for; the whole step is true, because reading its loss waits for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begin

    def lap(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last lap, seconds by part), and start again."""
        now = time.perf_counter()
        total, parts = now - self._started, dict(self._seconds)
        self._started = now
        self._seconds.clear()
        return total, parts
