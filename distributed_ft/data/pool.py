"""The same work on chunk after chunk, by all cores, with the results in the order of the chunks."""

import ctypes
import gc
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from distributed_ft.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
_ALONE = 0.3  # seconds of work that one process does before it asks others to help: forking pays only beyond


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[T], R], chunks: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`work` of each chunk, in order; chunks are read as they are needed, so a stream stays one.

    Processes are forked, so `work` may hold what is large or cannot be pickled (a tokenizer); chunks and results are
    pickled. Raises what `work` raises, DataError where a process was killed (most likely for want of memory).
    """
    workers = workers or num_cores()
    # Said before anything is tokenised: its threads do not survive a fork, and one process a core is as fast.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rest, begin = iter(chunks), time.monotonic()
    gc.freeze()  # a million objects of the libraries need not be looked through for cycles after every few rows
    try:
        for chunk in rest:
            yield work(chunk)
            if workers > 1 and time.monotonic() - begin > _ALONE:
                break
        yield from _together(work, rest, workers)
    finally:
        gc.unfreeze()


def counted(parts: Iterable[R], what: str, rows: Callable[[R], int]) -> Iterator[R]:
    """The same parts; whoever looks at a terminal sees how many rows are done, if it takes longer than a second."""
    with _bar(what) as bar:
        for part in parts:
            yield part
            bar.update(rows(part))


@contextmanager
def shown() -> Iterator[Callable[[str, int], None]]:
    """The same for work that tells itself what it does, and how many rows of that are done: one thing after another."""
    bars: dict[str, Any] = {}

    def tell(what: str, done: int) -> None:
        if what not in bars:
            close()
            bars[what] = _bar(what)
        bars[what].update(done - bars[what].n)

    def close() -> None:
        for bar in bars.values():
            bar.close()

    try:
        yield tell
    finally:
        close()


def _bar(what: str) -> Any:
    from tqdm import tqdm

    return tqdm(desc=what, unit=" rows", unit_scale=True, delay=1, disable=None, leave=False)


def _together(work: Callable[[T], R], chunks: Iterator[T], workers: int) -> Iterator[R]:
    first = next(chunks, None)
    if first is None:
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_begin, initargs=(work,))
    try:
        waiting: deque[Future[R]] = deque([pool.submit(_do, first)])
        for chunk in chunks:
            waiting.append(pool.submit(_do, chunk))
            if len(waiting) > 2 * workers:  # enough to keep all busy, little memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that prepares data was killed, most likely for want of memory; close other programs, or ask "
            "for more (Slurm: --mem)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any]  # in a forked process only: what it was started for


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # whoever forked us is told too, and decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Its queue has no end while any worker holds it, so without this (prctl's PR_SET_PDEATHSIG) the workers of a
    # process that was killed would wait for ever.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _do(chunk: Any) -> Any:
    return _work(chunk)
