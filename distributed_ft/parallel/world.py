"""The processes of a run: who am I, how many are we, and the few words that we exchange beside gradients.

A launcher (ours, torchrun, accelerate, srun) only has to set RANK, WORLD_SIZE, LOCAL_RANK and a rendezvous
(MASTER_ADDR and MASTER_PORT, or DFT_RENDEZVOUS as an init-method URL). The group is formed here and nowhere else.
"""

import json
import logging
import os
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distributed_ft import beats
from distributed_ft.errors import ConfigError, FtError

_PATIENCE = timedelta(days=2)  # a rank that died is noticed at once all the same: its connection closes
_AFTER_STALL = timedelta(minutes=5)  # who watches the ranks names the one that stalls; then come our own errors


@dataclass(frozen=True)
class World:
    """This process's place among `size` processes. Words are exchanged through host memory (gloo), so no GPU waits."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    patient: dist.ProcessGroup | None = None  # for waiting for work of one rank, which takes as long as it takes
    background: dist.ProcessGroup | None = None  # for one thread beside the training; no other may speak there
    imagined: bool = False  # no other process is there, and no tensor has data: see `distributed_ft.plan`

    @property
    def is_main(self) -> bool:
        """Rank 0: it alone writes what is written once."""
        return self.rank == 0

    def aside(self) -> "World":
        """The same place, for a thread beside the training: its `from_main` and `agree` meet on a group of their own.
        (On the training's own group the words of the two would be taken for one another.)"""
        return replace(self, patient=self.background)

    def has_turn(self, turn: int) -> bool:
        """Whether this rank does the work that ranks take in turns."""
        return turn % self.size == self.rank

    def sum(self, *values: float) -> tuple[float, ...]:
        """Each value summed over all ranks, in fp64. A collective: every rank calls it."""
        if self.size == 1:
            return tuple(float(v) for v in values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def from_main(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank."""
        return self.from_rank(0, value)

    def from_rank(self, source: int, value: Any) -> Any:
        """The picklable value of rank `source`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=source, group=self.patient, device=torch.device("cpu"))
        return box[0]

    def agree(self, problem: Exception | None) -> None:
        """Raise on every rank when any rank has a problem, so that none waits in a collective for one that left.

        Rank-local work that can fail (a full disk, a damaged file) ends with this call.
        """
        if self.size == 1:
            problems = [problem]
        else:
            problems = [None] * self.size
            dist.all_gather_object(problems, problem, group=self.patient)
        if problem is not None:
            raise problem
        for other in problems:
            if other is not None:
                raise other if isinstance(other, FtError | OSError) else RuntimeError(f"another rank failed: {other!r}")


def rank_from_environment() -> tuple[int, int, int]:
    """(RANK, WORLD_SIZE, LOCAL_RANK) as the launcher set them; (0, 1, 0) without a launcher."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return rank, size, int(os.environ.get("LOCAL_RANK", str(rank)))


def form_world(expected_size: int | None = None) -> World:
    """Join the process group, for the rest of the process's life: see `leave`.

    Args:
        expected_size: the size asked for; a launcher that started fewer (accelerate on CPU does) is an error.

    A collective waits for a rank longer than whoever watches the ranks does; `from_main` and `agree` wait for rank 0 to
    hash a checkpoint of any size.

    Raises:
        ConfigError: the world is not the one asked for, or there are fewer GPUs than local processes.
    """
    rank, size, local_rank = rank_from_environment()
    if expected_size is not None and size != expected_size:
        raise ConfigError(f"{expected_size} processes were asked for, but the launcher started {size}")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    timeout = timedelta(seconds=beats.stall_seconds()) + _AFTER_STALL
    dist.init_process_group(backend, init_method=_rendezvous(size), rank=rank, world_size=size, timeout=timeout)
    patient, background = (dist.new_group(backend="gloo", timeout=_PATIENCE) for _ in range(2))
    return World(rank, size, local_rank, device, patient, background)


def leave(code: int) -> NoReturn:
    """End this process, with its buffers written, and without taking the process group down.

    Taking it down can hang for ever: `~ProcessGroupGloo` joins its threads while it holds the interpreter lock, and one
    of them may be waiting for that lock to free the tensors of the last collective (seen with torch 2.13, three ranks).
    The kernel closes the sockets.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def collectives_entered() -> int:
    """How many collectives this rank has entered, of all groups; the rank that the others wait for has the fewest.
    Torch's flight recorder counts them: one for gloo, another for NCCL where torch has it."""
    dumps = [getattr(torch._C._distributed_c10d, f"_dump_{name}_trace_json", None) for name in ("fr", "nccl")]
    groups = [group for dump in dumps if dump for group in json.loads(dump(False, False))["pg_status"].values()]
    return sum(max(int(group["last_enqueued_collective"]), 0) for group in groups)


def lost_peers(error: BaseException) -> bool:
    """Whether an error is the consequence of another rank's end: its connection closed, or it no longer answers."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "Connection closed by peer" in text or "Connection reset by peer" in text or "gloo/transport/tcp" in text
    )


def _rendezvous(size: int) -> str:
    if "DFT_RENDEZVOUS" in os.environ:
        return os.environ["DFT_RENDEZVOUS"]
    if size == 1 and "MASTER_ADDR" not in os.environ:
        return "tcp://127.0.0.1:0"  # nobody else joins: any free port
    return "env://"
