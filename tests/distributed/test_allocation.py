"""The pre-flight of a job's nodes: processes that meet over loopback, each for a node."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks

from distributed_ft.artifacts import RunDirectory, read_json
from distributed_ft.parallel.world import World
from distributed_ft.train.allocation import Place, compare

NODES = ("north", "east", "west")
PATIENCE, SHORT = 60.0, 4.0  # seconds; the short one where somebody is missing


def free_port() -> int:
    """One that the system does not hand out to connections in the meantime."""
    while True:
        with socket.socket() as listening:
            port = random.randrange(10_000, 30_000)
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("{}")
    return run


def look_around(world: World, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Go through the cases on this node; what came out of each, and how long it took (seconds)."""
    found = {}
    for name, case in cases.items():
        if world.rank in case.get("absent", ()):
            continue
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(case["port"])}
        os.environ["DFT_DEVICES"] = str(case.get("devices", {}).get(world.rank, 1))
        run = RunDirectory(case.get("runs", {}).get(world.rank, case["run"]))
        token = run.path / f".{name}-{world.rank}"
        place = Place(run, case["out"], world.rank, NODES[: world.size], token, case.get("patience", PATIENCE))
        begin = time.monotonic()
        findings = compare(place, case.get("needed", {}).get(world.rank))
        found[name] = {**asdict(findings), "seconds": time.monotonic() - begin}
    return found


def test_nodes_come_to_one_judgement_that_names_who_is_not_fit_and_why(run: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    cases: dict[str, dict[str, Any]] = {
        "good": {},
        "device": {"devices": {1: 100_000}},
        "disk": {"needed": {2: 10**18}},
        "full for all": {"needed": dict.fromkeys(range(3), 10**18)},
        "missing": {"runs": {1: tmp_path}},
        "other": {"runs": {2: copy}},
        "absent": {"absent": [1], "patience": SHORT},
    }
    for name, case in cases.items():
        case.update(run=run.path, out=tmp_path / f"{name}.json", port=free_port())
    by_rank = run_ranks(3, look_around, on_cpu=True, cases=cases)
    bad = {}
    for name in cases:
        said = [found[name] for found in by_rank if name in found]
        assert len({json.dumps({**one, "seconds": 0}) for one in said}) == 1
        assert said[0]["bad_nodes"] == read_json(tmp_path / f"{name}.json")["bad_nodes"]
        bad[name] = said[0]["bad_nodes"]
    assert bad["good"] == bad["full for all"] == {}
    assert bad["device"].keys() == {"east"}
    assert "100000 processes" in bad["device"]["east"]
    assert bad["disk"].keys() == {"west"}
    assert "free some space" in bad["disk"]["west"]
    assert bad["missing"].keys() == {"east"}
    assert "it is not there" in bad["missing"]["east"]
    assert bad["other"].keys() == {"west"}
    assert "not the one of the other nodes" in bad["other"]["west"]
    assert bad["absent"].keys() == {"east"}
    assert "did not begin" in bad["absent"]["east"]
    good, full = by_rank[0]["good"], by_rank[0]["full for all"]
    assert (good["problem"], good["fault"]) == ("", "")
    assert "free some space (on 3 of 3 nodes" in full["problem"]
    links = read_json(tmp_path / "good.json")["links"]
    assert {(link["first"], link["second"]) for link in links} == {
        ("north", "east"),
        ("north", "west"),
        ("east", "west"),
    }
    assert all(link["bytes_per_second"] > 2**20 and abs(link["ahead_seconds"]) < 0.5 for link in links)
    assert good["seconds"] < 10  # 0.8 on two idle cores


class Node:
    """`python -m distributed_ft.train.allocation`, running for a node of three."""

    def __init__(
        self, rank: int, run: RunDirectory, port: int, *, patience: float = PATIENCE, writes: bool = True
    ) -> None:
        self.out = run.slurm / "preflight.json"
        command = [sys.executable, "-m", "distributed_ft.train.allocation", str(run.path), "--out", str(self.out)]
        self.process = subprocess.Popen(
            [*command, "--patience", str(patience)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "3",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DFT_DEVICES": "1",
                "DFT_NODE_NAMES": ",".join(NODES),
                "CUDA_VISIBLE_DEVICES": "",
            },
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=None if writes else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )

    def ended(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=220)
        return self.process.returncode, errors


def test_a_first_node_that_never_comes_is_named_by_all_others(run: RunDirectory) -> None:
    port = free_port()
    others = [Node(rank, run, port, patience=SHORT) for rank in (1, 2)]
    ended = [node.ended() for node in others]
    assert [code for code, _ in ended] == [78, 78]
    assert read_json(others[0].out)["bad_nodes"].keys() == {"north"}
    assert "".join(errors for _, errors in ended).count("dft: north is not fit for training: ") == 1


def test_a_port_that_is_taken_is_no_fault_of_the_node(run: RunDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        ended = Node(0, run, taken.getsockname()[1]).ended()
    assert ended[0] == 1
    assert ended[1].startswith("dft: error: north: the other nodes cannot be met (")


def test_the_judgement_is_written_though_the_first_node_cannot_write(run: RunDirectory) -> None:
    port = free_port()
    nodes = [Node(rank, run, port, writes=rank > 0) for rank in range(3)]
    ended = [node.ended() for node in nodes]
    assert [code for code, _ in ended] == [78, 78, 78], ended
    bad = read_json(nodes[0].out)["bad_nodes"]
    assert bad.keys() == {"north"}
    assert "File too large" in bad["north"]
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "slurm"]


def test_a_request_to_stop_ends_all_nodes_at_once_and_blames_none(run: RunDirectory) -> None:
    port = free_port()
    nodes = [Node(rank, run, port) for rank in (0, 1)]
    deadline = time.monotonic() + 60
    while len(list(run.path.glob(".preflight-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begin = time.monotonic()
    nodes[0].process.send_signal(signal.SIGTERM)
    assert nodes[0].ended()[0] == 75
    assert time.monotonic() - begin < 2
    nodes.append(Node(2, run, port))  # a late one goes by the judgement that it finds
    assert [node.ended()[0] for node in nodes[1:]] == [75, 75]
    assert read_json(nodes[0].out)["bad_nodes"] == {}
    assert not list(run.path.glob(".preflight-*"))
