"""Whether the nodes of a job are fit for training, judged from what they found. Pure, and free of torch.

Three rules run through it:

* what more than half of the nodes have in common is not a fault of nodes, but of the request or of what they share;
* a node is judged by the best of its links: a bad neighbour makes some of a good node's links bad, but not all;
* where two nodes differ, nobody can say which of them is right.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SLOW_NODE = 0.25  # of the median of the nodes' best links
SLOW_LINK = 0.5  # of the median of all links
SKEWED_SECONDS = 30.0  # a clock that is further from all others than this is wrong
SKEW_TO_TELL_SECONDS = 0.5  # beyond it, times in the logs of two nodes no longer tell what came first


@dataclass(frozen=True)
class Look:
    """What a node found on itself; "" where there is no fault."""

    devices: int  # GPUs; cores where it has none
    wanted: int  # devices it shall have
    granted: int | None = None  # GPUs that the batch system gave; None where it does not say, and for cores
    kind: str = "core"  # or GPU
    faults: tuple[str, ...] = ()  # of its devices, of its temporary directory
    directory: str = ""  # what is wrong with the run directory, seen from here
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int | None = None  # in the run directory
    tmp_free_bytes: int | None = None


@dataclass(frozen=True)
class Link:
    """What two nodes measured, `first` before `second` in the list of nodes."""

    first: str
    second: str
    bytes_per_second: float | None = None  # None: it does not work
    ahead_seconds: float = 0.0  # clock of `second` minus that of `first`
    within_seconds: float = 0.0  # half of the round trip by which the clocks were read
    error: str = ""


@dataclass(frozen=True)
class Figures:
    """All that is known of an allocation."""

    nodes: tuple[str, ...]
    looks: Mapping[str, Look] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)  # node -> how far it came
    sees: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # node -> nodes whose files it sees in the directory
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class Findings:
    """The judgement. `problem`: for the user; `fault`: nodes do not work together, and no one of them is at fault."""

    bad_nodes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str = ""
    fault: str = ""
    stopped: bool = False  # on request, before anything was judged

    @staticmethod
    def of(written: Mapping[str, Any]) -> "Findings":
        """As it was read from a file."""
        return Findings(
            dict(written["bad_nodes"]),
            tuple(written["warnings"]),
            written.get("problem", ""),
            written.get("fault", ""),
            written.get("stopped", False),
        )


class _Judgement:
    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = nodes
        self.bad: dict[str, list[str]] = {}
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.faults: list[str] = []

    def blame(self, node: str, reason: str) -> None:
        self.bad.setdefault(node, []).append(reason)

    def is_few(self, faulty: Mapping[str, str]) -> bool:
        """Whether the nodes can be at fault, who have something that the others have not."""
        return 2 * len(faulty) <= len(self.nodes)

    def findings(self) -> Findings:
        bad = {node: "; ".join(self.bad[node]) for node in self.nodes if node in self.bad}
        return Findings(bad, tuple(self.warnings), "\n".join(self.problems), "; ".join(self.faults))


def judge(figures: Figures) -> Findings:
    """Who is not fit for training, and why."""
    judgement = _Judgement(figures.nodes)
    for node, stage in figures.silent.items():
        judgement.blame(node, stage)
    for node, look in figures.looks.items():
        for fault in look.faults:
            judgement.blame(node, fault)
        judgement.warnings += [f"{node}: {warning}" for warning in look.warnings]
    _judge_devices(figures, judgement)
    _judge_directory(figures, judgement)
    _judge_versions(figures, judgement)
    if not figures.silent:  # who waited for one of these has no time left for others
        _judge_dead_links(figures, judgement)
        _judge_slow_links(figures, judgement)
        _judge_clocks(figures, judgement)
    return judgement.findings()


def _judge_devices(figures: Figures, judgement: _Judgement) -> None:
    gpus = {node: look for node, look in figures.looks.items() if look.kind == "GPU" and look.devices < look.wanted}
    for node, look in gpus.items():
        if look.granted is not None and look.granted < look.wanted:
            judgement.problems.append(
                f"--gpus-per-node: {look.wanted} processes on {node}, where the job has {look.granted} GPU(s); ask for "
                "as many GPUs as processes"
            )
        else:
            judgement.blame(node, f"it has {look.devices} GPU(s) that work, and shall have {look.wanted}")
    cores = {
        node: f"it has {look.devices} core(s) for {look.wanted} processes"
        for node, look in figures.looks.items()
        if look.kind == "core" and look.devices < look.wanted
    }
    for node, reason in cores.items():
        if judgement.is_few(cores):
            judgement.blame(node, reason)
        else:  # slow, but what was asked for
            judgement.warnings.append(f"{node}: {reason}")


def _judge_directory(figures: Figures, judgement: _Judgement) -> None:
    faulty = {node: look.directory for node, look in figures.looks.items() if look.directory}
    if faulty and judgement.is_few(faulty):
        for node, reason in faulty.items():
            judgement.blame(node, reason)
    elif faulty:
        node, reason = next(iter(faulty.items()))
        judgement.problems.append(f"{reason} (on {len(faulty)} of {len(judgement.nodes)} nodes, {node} for one)")
    seeing = {node: frozenset(seen) for node, seen in figures.sees.items() if node not in faulty}
    if not seeing:
        return
    largest = max(seeing.values(), key=len)
    alone = {n: "its run directory is not the one of the other nodes" for n in seeing if n not in largest}
    if alone and len(largest) > 1 and judgement.is_few(alone):
        for node, reason in alone.items():
            judgement.blame(node, reason)
    elif alone:
        judgement.problems.append(
            f"runs_dir: it is not one directory on {', '.join(seeing)}; choose one that all nodes share"
        )


def _judge_versions(figures: Figures, judgement: _Judgement) -> None:
    for name in sorted({name for look in figures.looks.values() for name in look.versions}):
        has = {node: look.versions.get(name, "none") for node, look in figures.looks.items()}
        usual, count = Counter(has.values()).most_common(1)[0]
        other = {
            node: f"it has {name} {version}, the others {usual}" for node, version in has.items() if version != usual
        }
        if not other:
            continue
        if 2 * count > len(has):
            for node, reason in other.items():
                judgement.blame(node, reason)
        else:
            differ = ", ".join(f"{version} on {node}" for node, version in has.items())
            judgement.problems.append(f"{name}: {differ}; install the same on all nodes")


def _judge_dead_links(figures: Figures, judgement: _Judgement) -> None:
    """The fewest nodes without which all links work, taken greedily: first who has the most dead links."""
    dead = [link for link in figures.links if link.bytes_per_second is None]
    blamed: dict[str, str] = {}
    left = list(dead)
    while left:
        counts = Counter(node for link in left for node in reversed(_ends(link)))
        node = counts.most_common(1)[0][0]
        links = [link for link in left if node in _ends(link)]
        others = [other for link in links for other in _ends(link) if other != node]
        blamed[node] = f"no data comes through between it and {', '.join(others[:3])} ({links[0].error})"
        left = [link for link in left if link not in links]
    if len(figures.nodes) > 2 and judgement.is_few(blamed):
        for node, reason in blamed.items():
            judgement.blame(node, reason)
    elif blamed:
        judgement.faults += [f"{node}: {reason}" for node, reason in blamed.items()]


def _judge_slow_links(figures: Figures, judgement: _Judgement) -> None:
    speeds = {_ends(link): link.bytes_per_second for link in figures.links if link.bytes_per_second is not None}
    best = {
        node: max(own) for node in figures.nodes if (own := [speed for ends, speed in speeds.items() if node in ends])
    }
    if len(best) < 3:
        return
    usual = statistics.median(best.values())
    slow = {
        node: f"its network is slow: at best {_rate(speed)}, the others {_rate(usual)}"
        for node, speed in best.items()
        if speed < SLOW_NODE * usual
    }
    for node, reason in slow.items():
        judgement.blame(node, reason)
    median = statistics.median(speeds.values())
    slow_links = sorted(
        (speed, ends) for ends, speed in speeds.items() if speed < SLOW_LINK * median and not slow.keys() & set(ends)
    )
    if slow_links:
        speed, ends = slow_links[0]
        judgement.warnings.append(
            f"{len(slow_links)} of {len(speeds)} links are slow, most of all the one between {ends[0]} and {ends[1]}: "
            f"{_rate(speed)}, the median is {_rate(median)}"
        )


def _judge_clocks(figures: Figures, judgement: _Judgement) -> None:
    """A node's skew is the least by which its clock differs from another's, for certain."""
    skews: dict[str, list[float]] = {}
    measured = [link for link in figures.links if link.bytes_per_second is not None]
    for link in measured:
        for node in _ends(link):
            skews.setdefault(node, []).append(_certain_skew(link))
    wrong = {
        node: f"its clock is {min(own):.0f} s from the other nodes' clocks"
        for node, own in skews.items()
        if min(own) > SKEWED_SECONDS
    }
    if len(skews) > 2 and judgement.is_few(wrong):
        for node, reason in wrong.items():
            judgement.blame(node, reason)
            skews.pop(node)
    worst = max((link for link in measured if skews.keys() >= set(_ends(link))), key=_certain_skew, default=None)
    if worst is not None and _certain_skew(worst) > SKEW_TO_TELL_SECONDS:
        judgement.warnings.append(
            f"clocks differ by up to {abs(worst.ahead_seconds):.1f} s ({worst.first} and {worst.second}): times in the "
            "logs do not tell what came first"
        )


def _certain_skew(link: Link) -> float:
    return max(0.0, abs(link.ahead_seconds) - link.within_seconds)


def _ends(link: Link) -> tuple[str, str]:
    return link.first, link.second


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 2**20:.0f} MiB/s"
