"""`python -m distributed_ft.train.allocation RUN --out FILE`: look at the nodes of a job before it trains.

One process a node, with RANK (of the node), MASTER_ADDR, MASTER_PORT, DFT_DEVICES (that a node shall have) and
DFT_NODE_NAMES (by rank, with commas). All come to one judgement, the first that is written to FILE; a process
that finds FILE goes by it. Rank 0 judges; where it does not answer in time, each of the others says so.

Exit codes: 0 fit, 78 some nodes are not (FILE says which and why), 2 the user must change something, 1 the nodes do not
work together and none is at fault, 75 stopped on request.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from distributed_ft import roll
from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, EXIT_USER, brief
from distributed_ft.train.fitness import Figures, Findings, Link, Look, judge
from distributed_ft.train.signals import StopRequest

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # it is documented

PATIENCE = 120.0  # seconds for a node to come and look at itself, and again for all to meet: a cold file system is slow
GRACE = 10.0  # seconds that rank 0 may need to judge
SEEN_SECONDS = 5.0  # until a file of one node is seen by another
READ_SECONDS = 5.0  # until all have read the judgement


@dataclass(frozen=True)
class Place:
    """This process among those of the job, and what it was asked to do."""

    run: RunDirectory
    out: Path
    rank: int
    names: tuple[str, ...]
    token: Path  # this node's file in the run directory
    patience: float  # seconds

    def publish(self, findings: Findings, figures: Mapping[str, Any] | None = None) -> Findings:
        """Write a judgement where there is none yet. Returns the one that stands.

        A link is made under the name, which fails where the name is taken: so all nodes go by the same judgement.
        """
        partial = self.out.with_name(f".{self.out.name}.{uuid.uuid4().hex}")
        first = False
        try:
            write_json(partial, {"schema": 1, **asdict(findings), **(figures or {})})
            os.link(partial, self.out)
            first = True
        except OSError:  # there is one, or this node cannot write
            pass
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        deadline = time.monotonic() + SEEN_SECONDS
        while (standing := self.standing()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if first or (standing is None and self.rank == 0):
            _tell(findings)
        return standing or findings

    def standing(self) -> Findings | None:
        """The judgement in the file, if there is one."""
        try:
            return Findings.of(json.loads(self.out.read_bytes()))
        except OSError:
            return None

    def end(self, findings: Findings) -> NoReturn:
        """End this process, whatever its other threads are waiting for."""
        with contextlib.suppress(OSError):
            self.token.unlink(missing_ok=True)
        sys.stderr.flush()
        os._exit(exit_code(findings))


def exit_code(findings: Findings) -> int:
    """What a judgement means for who started this."""
    if findings.stopped:
        return EXIT_STOPPED
    if findings.problem:
        return EXIT_USER
    if findings.bad_nodes:
        return EXIT_BAD_NODE
    return EXIT_FAULT if findings.fault else EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Ends the process."""
    parser = argparse.ArgumentParser(prog="python -m distributed_ft.train.allocation", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="where the judgement is written, a new file for each job"
    )
    parser.add_argument("--needed-bytes", type=int, help="size of a checkpoint (default: as the newest one)")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds to wait for a node")
    options = parser.parse_args(arguments)
    rank, run = int(os.environ["RANK"]), RunDirectory(options.run)
    names = tuple(os.environ["DFT_NODE_NAMES"].split(","))
    token = run.path / f".preflight-{names[rank]}-{uuid.uuid4().hex[:8]}"
    place = Place(run, options.out, rank, names, token, options.patience)
    StopRequest().listen(lambda: place.end(place.publish(Findings(stopped=True))))
    roll.end_with_parent()
    threading.Thread(target=_watch, args=(place,), daemon=True).start()
    if (standing := place.standing()) is not None:
        place.end(standing)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what the store says of lost connections is said better here
    try:
        tempfile.gettempdir()
    except (
        FileNotFoundError
    ):  # dill, which torch imports if it can, asks for one; that it cannot be written, `look` says
        tempfile.tempdir = os.curdir
    from torch.distributed import DistError

    try:
        findings = compare(place, options.needed_bytes)
    except DistError as error:  # of the store, which rank 0 holds
        if rank == 0:
            findings = place.publish(Findings(fault=f"{names[0]}: the other nodes cannot be met ({brief(error)})"))
        else:
            findings = place.publish(Findings({names[0]: f"it did not come, or went away ({brief(error)})"}))
    place.end(findings)


def _watch(place: Place) -> None:
    """End with the others when one was asked to stop or could not begin, and at the latest when rank 0 has named
    every node that hangs, unless it is the one."""
    deadline = time.monotonic() + 2 * (place.patience + GRACE + SEEN_SECONDS)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (standing := place.standing()) is not None and (standing.stopped or standing.fault):
            place.end(standing)
    place.end(place.publish(Findings({place.names[0]: "its pre-flight hangs, or did not begin"})))


def compare(place: Place, needed: int | None) -> Findings:
    """Look, meet the others, and come to the judgement.

    Args:
        needed: bytes of a checkpoint; None: as the newest one.

    Raises:
        DistError: rank 0 does not answer.
    """
    begin = time.monotonic()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=place.rank == 0,
        timeout=timedelta(seconds=place.patience),
        wait_for_workers=False,
    )
    from distributed_ft.train.node_look import look

    wanted = int(os.environ["DFT_DEVICES"])
    mine = look(place.run, place.token, wanted, needed, lambda stage: _at(place, store, stage))
    store.set(f"look/{place.rank}", json.dumps({**asdict(mine), "token": place.token.name}))
    if place.rank == 0:
        return _lead(place, store, begin)
    _follow(place, store)
    store.wait(["judgement"], timedelta(seconds=place.patience + SEEN_SECONDS + 2 * GRACE))
    findings = place.publish(Findings.of(json.loads(store.get("judgement"))))
    store.set(f"read/{place.rank}", "")
    return findings


def _lead(place: Place, store: "Store", begin: float) -> Findings:
    """Gather what all have found, and judge."""
    raw, silent = _gather(store, "look", place.names, begin + place.patience)
    seconds = {"looking": time.monotonic() - begin}
    tokens = {node: answer.pop("token") for node, answer in raw.items()}
    looks = {node: Look(**answer) for node, answer in raw.items()}
    figures = Figures(place.names, looks, silent)
    if silent:
        store.set("go", json.dumps(None))
    else:
        store.set("go", json.dumps({node: token for node, token in tokens.items() if not looks[node].directory}))
        deadline = time.monotonic() + place.patience + SEEN_SECONDS + GRACE
        _follow(place, store)
        measured, silent = _gather(store, "measured", place.names, deadline)
        sees = {node: answer["sees"] for node, answer in measured.items()}
        links = [Link(**link) for answer in measured.values() for link in answer["links"]]
        figures = Figures(place.names, looks, silent, sees, links)
        seconds["measuring"] = time.monotonic() - begin - seconds["looking"]
    findings = judge(figures)
    shown = {"nodes": raw, "links": [asdict(link) for link in figures.links], "seconds": seconds}
    findings = place.publish(findings, shown)
    store.set("judgement", json.dumps(asdict(findings)))
    deadline = time.monotonic() + READ_SECONDS
    for rank, node in enumerate(place.names):
        if rank > 0 and node not in figures.silent:
            _came(store, f"read/{rank}", deadline)  # the store lives in this process
    return findings


def _follow(place: Place, store: "Store") -> None:
    """Look for the others' files, and measure the links to them, when all are there."""
    from distributed_ft.train.links import measure

    store.wait(["go"], timedelta(seconds=place.patience + GRACE))
    tokens = json.loads(store.get("go"))
    if tokens is None:
        return
    _at(place, store, "the other nodes' files")
    sees = _seen(place.run, tokens) if place.names[place.rank] in tokens else []
    _at(place, store, "the links to the other nodes")
    until = time.monotonic() + place.patience + SEEN_SECONDS  # others may still be looking
    links = [asdict(link) for link in measure(store, place.rank, place.names, until)]
    store.set(f"measured/{place.rank}", json.dumps({"sees": sees, "links": links}))


def _at(place: Place, store: "Store", stage: str) -> None:
    """Say what comes now, in case that it is the last that is heard of this node."""
    store.set(f"stage/{place.rank}", f"its pre-flight did not get past {stage}")


def _seen(run: RunDirectory, tokens: Mapping[str, str]) -> list[str]:
    """The nodes whose files are in this node's run directory, after some time for the file system."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        seen = [node for node, token in tokens.items() if (run.path / token).exists()]
        if len(seen) == len(tokens) or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def _gather(
    store: "Store", key: str, names: Sequence[str], deadline: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each node has to say, and how far those came who said nothing."""
    said, silent = {}, {}
    for rank, node in enumerate(names):
        if _came(store, f"{key}/{rank}", deadline):
            said[node] = json.loads(store.get(f"{key}/{rank}"))
        elif store.check([f"stage/{rank}"]):
            silent[node] = bytes(store.get(f"stage/{rank}")).decode()
        else:
            silent[node] = "its pre-flight did not begin, or does not reach the first node"
    return said, silent


def _came(store: "Store", key: str, deadline: float) -> bool:
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _tell(findings: Findings) -> None:
    for node, reason in findings.bad_nodes.items():
        print(f"dft: {node} is not fit for training: {reason}", file=sys.stderr)
    for text in filter(None, (findings.problem, findings.fault)):
        print(f"dft: error: {text}", file=sys.stderr)
    for warning in findings.warnings:
        print(f"dft: warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
