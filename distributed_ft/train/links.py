"""The links between the nodes of a job: each pair compares clocks and measures its bandwidth, in disjoint pairs."""

import time
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store  # type: ignore[attr-defined]  # they are documented

from distributed_ft.errors import brief
from distributed_ft.train.fitness import Link

PAYLOAD_BYTES = 8 * 2**20  # there and back: 0.15 s by 1 Gb/s
REPEATS = 3  # the best counts: others use the network too
PINGS = 5
LINK_SECONDS = 10.0  # after which a link is dead
MOST_ROUNDS = 32  # of a large job each node meets so many others
_CLOCKS, _DATA = 0, 1  # tags


def rounds(size: int) -> list[list[tuple[int, int]]]:
    """A round-robin tournament by the circle method: every pair of `size` meets once, nobody twice in a round."""
    seats = [*range(size), *([-1] if size % 2 else [])]  # who meets -1 rests
    plan = []
    for _ in range(len(seats) - 1):
        pairs = [(seats[i], seats[-1 - i]) for i in range(len(seats) // 2)]
        plan.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return plan[:MOST_ROUNDS]


def measure(store: Store, rank: int, names: tuple[str, ...], until: float) -> list[Link]:
    """Meet the other nodes. Returns the links to those of a higher rank; theirs to this one are in their lists.

    Args:
        store: what the nodes have in common; until: monotonic time at which to give up waiting for a partner.
    """
    found, works, failures = [], False, 0
    for number, pairs in enumerate(rounds(len(names))):
        pair = next((pair for pair in pairs if rank in pair), None)
        if pair is None:
            continue
        goes_on = works or failures < 2  # a node that reaches nobody shall not keep the others waiting
        error, link = "", None
        try:
            if not _meet(store, f"meet/{number}", pair, rank, goes_on, until):
                error = "it reached nobody before"
            else:
                link = _exchange(PrefixStore(f"link/{number}/{pair[0]}", store), rank, pair, names)
        except RuntimeError as problem:  # a timeout of the store or of gloo, or a closed connection
            error = brief(problem)
        works, failures = works or link is not None, failures + (link is None)
        if rank == pair[0]:
            found.append(link or Link(names[pair[0]], names[pair[1]], error=error))
    return found


def _meet(store: Store, key: str, pair: tuple[int, int], rank: int, goes_on: bool, until: float) -> bool:
    """Wait for the partner, who may be held up by another; False when one of the two has given up."""
    partner = pair[1] if rank == pair[0] else pair[0]
    store.set(f"{key}/{rank}", "goes on" if goes_on else "gave up")
    store.wait([f"{key}/{partner}"], timedelta(seconds=max(0.1, until - time.monotonic())))
    return goes_on and bytes(store.get(f"{key}/{partner}")) == b"goes on"


def _exchange(store: Store, rank: int, pair: tuple[int, int], names: tuple[str, ...]) -> Link:
    """A group of two, so that a link that fails takes no other with it. Raises RuntimeError."""
    group: Any = ProcessGroupGloo(store, pair.index(rank), 2, timedelta(seconds=LINK_SECONDS))
    data = torch.zeros(PAYLOAD_BYTES, dtype=torch.uint8)
    if rank == pair[1]:
        for _ in range(PINGS):
            clock = torch.zeros(1, dtype=torch.float64)
            group.recv([clock], 0, _CLOCKS).wait()
            group.send([clock.fill_(time.time())], 0, _CLOCKS).wait()
        for _ in range(REPEATS):
            group.recv([data], 0, _DATA).wait()
            group.send([data], 0, _DATA).wait()
        return Link(names[pair[0]], names[pair[1]])
    trips = []  # (round trip, how far the other clock is ahead)
    for _ in range(PINGS):
        clock, begin = torch.zeros(1, dtype=torch.float64), time.time()
        group.send([clock], 1, _CLOCKS).wait()
        group.recv([clock], 1, _CLOCKS).wait()
        end = time.time()
        trips.append((end - begin, clock.item() - (begin + end) / 2))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        group.send([data], 1, _DATA).wait()
        group.recv([data], 1, _DATA).wait()
        seconds.append(time.perf_counter() - begin)
    round_trip, ahead = min(trips)
    return Link(names[pair[0]], names[pair[1]], 2 * PAYLOAD_BYTES / min(seconds), ahead, round_trip / 2)
