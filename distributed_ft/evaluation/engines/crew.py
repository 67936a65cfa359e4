"""Several processes that answer, each with a model of its own; this one hands out the batches and hears the answers.

The requests alone decide the batches, and any process answers a batch as any other does (each computes on a GPU of its
own, or with as many CPU threads as the others), so that what comes out does not depend on how many there are. They end
when this process does, whatever ends it: their end of the pipe says so.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from distributed_ft.errors import EngineError, FtError
from distributed_ft.evaluation.engines.local import TransformersEngine
from distributed_ft.evaluation.task import Request, Response
from distributed_ft.model.adapters import virtual_tokens_in
from distributed_ft.model.load import quiet_libraries

_AHEAD = 2  # batches that a process has at a time: it need not wait for the next one
_END_SECONDS = 10.0  # that a process has to end when it is told


@dataclass(frozen=True)
class _Order:
    """What a process is to do: put weights on, or answer a batch. `turn` tells replies to former orders apart."""

    turn: int
    place: int
    weights: Path | None = None
    strength: float = 1.0
    batch: tuple[Request, ...] | None = None
    text: tuple[int, ...] | None = None  # token ids: what is expected of each next one?


@dataclass(frozen=True)
class _Reply:
    turn: int
    place: int
    content: "list[Response] | NDArray[np.float32] | FtError | None"


@dataclass(frozen=True)
class _Member:
    number: int  # from 1
    process: BaseProcess
    pipe: "Connection[_Order, _Reply]"


class Crew:
    """An engine of `size` processes, which are started when weights are first needed, and end with `close`."""

    def __init__(self, head: TransformersEngine, size: int, devices: Sequence[str]) -> None:
        """
        Args:
            head: decides what is asked; it gets no weights.
            devices: of each process.
        """
        self._head, self._size, self._devices = head, size, devices
        self._members: list[_Member] = []
        self._turn = 0
        self.digest, self.settings, self.context = head.digest, head.settings, head.context
        self.tokenizer = head.tokenizer
        self.tokens, self.answer_tokens, self.batches = head.tokens, head.answer_tokens, head.batches

    def use(self, weights: Path | None, strength: float = 1.0) -> None:
        """See `Engine`. Raises EngineError when a process has died."""
        if not self._members:
            self._start()
        self._turn += 1
        for member in self._members:
            self._give(member, _Order(self._turn, member.number, weights, strength))
        replies = [self._next() for _ in self._members]
        for _, reply in replies:
            if isinstance(reply.content, FtError):
                raise reply.content
        self._head.prompts.num_virtual = 0 if weights is None else virtual_tokens_in(weights)

    def answers(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Response]]]:
        """See `Engine`. What fails is what failed in one process: the first batch that does."""
        self._turn += 1
        left = deque(enumerate(batches))
        failed: dict[int, FtError] = {}
        given = 0
        for member in [*self._members] * _AHEAD:
            given += self._give_next(member, left)
        while given:
            member, reply = self._next()
            given -= 1
            if isinstance(reply.content, FtError):
                failed[reply.place] = reply.content
                left.clear()
            else:
                assert isinstance(reply.content, list)
                yield reply.place, reply.content
            given += self._give_next(member, left)
        if failed:  # all batches before it were given out before
            raise failed[min(failed)]

    def log_probabilities(self, tokens: Sequence[int]) -> torch.Tensor:
        """As `TransformersEngine.log_probabilities`, by the first of the processes."""
        self._turn += 1
        self._give(self._members[0], _Order(self._turn, 0, text=tuple(tokens)))
        _, reply = self._next()
        if isinstance(reply.content, FtError):
            raise reply.content
        assert isinstance(reply.content, np.ndarray)
        return torch.from_numpy(reply.content)

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            member.pipe.close()
        for member in self._members:
            member.process.join(_END_SECONDS)
            member.process.kill()
            member.process.join()
        self._members = []

    def _start(self) -> None:
        # Forked of a process that has imported all of it once, and done no more. CUDA may not be asked for before a
        # fork, not even whether it is there, and libraries ask when they are imported.
        on_cpu = all(device == "cpu" for device in self._devices)
        begin = multiprocessing.get_context("forkserver") if on_cpu else multiprocessing.get_context("spawn")
        begin.set_forkserver_preload([__name__])
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        resource_tracker.ensure_running()  # which lets SIGINT and SIGTERM through to this thread
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, device in enumerate(self._devices, start=1):
            ours, theirs = begin.Pipe()
            arguments = (theirs, self._head.arguments, device, torch.get_num_threads())
            process = begin.Process(target=_serve, args=arguments, name=f"engine {number}", daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends when the process does
            self._members.append(_Member(number, process, ours))

    def _give_next(self, member: _Member, left: deque[tuple[int, Sequence[Request]]]) -> int:
        """How many batches it was given: 1, or 0 when none is left."""
        if not left:
            return 0
        place, batch = left.popleft()
        self._give(member, _Order(self._turn, place, batch=tuple(batch)))
        return 1

    def _give(self, member: _Member, order: _Order) -> None:
        try:
            member.pipe.send(order)
        except OSError:
            raise self._lost(member) from None

    def _next(self) -> tuple[_Member, _Reply]:
        """The next reply to an order of this turn, and who sent it."""
        by_pipe: dict[Any, _Member] = {member.pipe: member for member in self._members}
        while True:
            for pipe in wait(list(by_pipe)):
                member = by_pipe[pipe]
                try:
                    reply = member.pipe.recv()
                except (EOFError, OSError):
                    raise self._lost(member) from None
                if reply.turn == self._turn:
                    return member, reply

    def _lost(self, member: _Member) -> EngineError:
        """A process has died: the others end too."""
        member.process.join(_END_SECONDS)
        code = member.process.exitcode
        what = f"ended with {code}" if code is None or code >= 0 else f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            what += " (the kernel does that when memory is short: try a smaller --nproc)"
        self.close()
        return EngineError(
            f"engine process {member.number} of {self._size} (pid {member.process.pid}) {what}; the answers so far are "
            "kept, and the same command goes on from there"
        )


def _serve(pipe: "Connection[_Reply, _Order]", arguments: dict[str, Any], device: str, threads: int) -> None:
    """A process of the crew. Whoever started it heeds Ctrl-C for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    inbox: queue.SimpleQueue[_Order] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(pipe, inbox), name="orders", daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which would be left behind
    quiet_libraries()
    torch.set_num_threads(threads)
    engine = TransformersEngine(**arguments, device=torch.device(device))
    while True:
        order = inbox.get()
        content: list[Response] | NDArray[np.float32] | FtError | None = None
        try:
            if order.text is not None:
                content = engine.log_probabilities(order.text).cpu().numpy()
            elif order.batch is not None:
                content = engine.answer(order.batch)
            else:
                engine.use(order.weights, order.strength)
        except FtError as error:
            content = error
        pipe.send(_Reply(order.turn, order.place, content))


def _hear(pipe: "Connection[_Reply, _Order]", inbox: "queue.SimpleQueue[_Order]") -> None:
    """Take orders, and end this process at once, in the middle of an answer too, when nobody can give any."""
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            sys.stderr.flush()
            os._exit(0)
