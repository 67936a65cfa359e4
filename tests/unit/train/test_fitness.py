"""Who is not fit for training, by what the nodes of a job found. Pure."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from distributed_ft.train.fitness import Figures, Findings, Link, Look, judge
from distributed_ft.train.links import rounds

FINE = Look(devices=8, wanted=8, granted=8, kind="GPU", versions={"torch": "2.13"})
FAST = 2e9  # bytes per second


def names(count: int) -> tuple[str, ...]:
    return tuple("abcdefgh"[:count])


def figures(count: int, **looks: Look) -> Figures:
    """Of nodes a, b, …, all well but for those that are given."""
    nodes = names(count)
    return Figures(
        nodes,
        {node: looks.get(node, FINE) for node in nodes},
        sees=dict.fromkeys(nodes, nodes),
        links=[Link(first, second, FAST) for first, second in itertools.combinations(nodes, 2)],
    )


def with_links(known: Figures, pairs: Iterable[str], **changes: object) -> Figures:
    """`pairs`: names of two nodes each, as `ab`."""
    chosen = set(pairs)
    links = [replace(link, **changes) if link.first + link.second in chosen else link for link in known.links]  # type: ignore[arg-type]
    return replace(known, links=links)


def test_nodes_that_are_well_are_fit() -> None:
    assert judge(figures(4)) == judge(figures(1)) == Findings()


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (replace(FINE, devices=7), "it has 7 GPU(s) that work, and shall have 8"),
        (replace(FINE, devices=0), "it has 0 GPU(s) that work, and shall have 8"),
        (replace(FINE, kind="core", granted=None, devices=4), "it has 4 core(s) for 8 processes"),
        (replace(FINE, faults=("GPU 3: it computes wrongly",)), "GPU 3: it computes wrongly"),
        (replace(FINE, directory="/runs/x: no space left"), "/runs/x: no space left"),
        (replace(FINE, versions={"torch": "2.11"}), "it has torch 2.11, the others 2.13"),
        (replace(FINE, devices=7, faults=("x",)), "x; it has 7 GPU(s) that work, and shall have 8"),
    ],
)
def test_a_node_with_a_fault_of_its_own_is_bad(look: Look, reason: str) -> None:
    assert judge(figures(3, b=look)) == Findings({"b": reason})


def test_a_gpu_less_than_slurm_gave_is_the_nodes_fault_even_where_it_is_alone() -> None:
    assert judge(figures(1, a=replace(FINE, devices=7))).bad_nodes.keys() == {"a"}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("look", "problem"),
    [
        (replace(FINE, devices=4, granted=4), "--gpus-per-node: 8 processes on a"),
        (replace(FINE, directory="/runs/x: no space left"), "/runs/x: no space left (on "),
    ],
)
def test_what_all_nodes_lack_is_for_the_user(count: int, look: Look, problem: str) -> None:
    found = judge(figures(count, **dict.fromkeys(names(count), look)))
    assert found.bad_nodes == {}
    assert found.problem.startswith(problem)


def test_fewer_cores_than_processes_on_all_nodes_is_slow_but_what_was_asked_for() -> None:
    found = judge(figures(2, **dict.fromkeys(names(2), replace(FINE, kind="core", devices=1, granted=None))))
    assert (found.bad_nodes, found.problem, len(found.warnings)) == ({}, "", 2)


def test_of_two_nodes_with_different_versions_nobody_knows_which_is_right() -> None:
    found = judge(figures(2, b=replace(FINE, versions={"torch": "2.11"})))
    assert found == Findings(problem="torch: 2.13 on a, 2.11 on b; install the same on all nodes")


def test_a_node_with_another_directory_is_bad_and_directories_of_each_node_are_for_the_user() -> None:
    one = replace(figures(3), sees={"a": "ab", "b": "ab", "c": "c"})
    assert judge(one).bad_nodes == {"c": "its run directory is not the one of the other nodes"}
    each = judge(replace(one, sees={"a": "a", "b": "b", "c": "c"}))
    assert (each.bad_nodes, each.problem[:9]) == ({}, "runs_dir:")


def test_a_node_that_said_nothing_is_bad_and_those_who_waited_for_it_are_not() -> None:
    known = with_links(figures(3), ["bc"], bytes_per_second=None, error="timed out")
    looks = dict.fromkeys("ab", FINE)
    found = judge(replace(known, looks=looks, silent={"c": "its pre-flight hangs at its devices"}))
    assert found == Findings({"c": "its pre-flight hangs at its devices"})


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_a_node_whose_links_are_all_slow_is_bad(count: int) -> None:
    last = names(count)[-1]
    found = judge(with_links(figures(count), [node + last for node in names(count)], bytes_per_second=FAST / 10))
    assert found == Findings({last: "its network is slow: at best 191 MiB/s, the others 1907 MiB/s"})


def test_one_slow_link_is_a_warning() -> None:
    found = judge(with_links(figures(4), ["bc"], bytes_per_second=FAST / 10))
    assert found.bad_nodes == {}
    assert found.warnings == (
        "1 of 6 links are slow, most of all the one between b and c: 191 MiB/s, the median is 1907 MiB/s",
    )


def test_between_two_nodes_any_speed_is_the_usual_one() -> None:
    assert judge(with_links(figures(2), ["ab"], bytes_per_second=1.0)) == Findings()


@pytest.mark.parametrize(
    ("dead", "bad"),
    [(["ab", "bc", "bd"], "b"), (["cd"], "d"), (["ac", "ad"], "a"), (["ab", "bc", "bd", "cd", "ad"], "bd")],
)
def test_the_fewest_nodes_without_which_all_links_work_are_bad(dead: list[str], bad: str) -> None:
    found = judge(with_links(figures(4), dead, bytes_per_second=None, error="timed out"))
    assert sorted(found.bad_nodes) == list(bad)
    assert "no data comes through between it and" in found.bad_nodes[bad[0]]


def test_nodes_that_reach_nobody_are_a_fault_of_the_network() -> None:
    two = judge(with_links(figures(2), ["ab"], bytes_per_second=None, error="timed out"))
    assert (two.bad_nodes, two.fault) == ({}, "b: no data comes through between it and a (timed out)")
    all_of_them = [link.first + link.second for link in figures(4).links]
    four = judge(with_links(figures(4), all_of_them, bytes_per_second=None, error="timed out"))
    assert four.bad_nodes == {}
    assert four.fault


def test_a_clock_that_is_far_from_all_others_is_bad_and_a_small_difference_a_warning() -> None:
    far = judge(with_links(figures(3), ["ac", "bc"], ahead_seconds=-90.0, within_seconds=0.1))
    assert far == Findings({"c": "its clock is 90 s from the other nodes' clocks"})
    assert judge(with_links(figures(3), ["ac"], ahead_seconds=2.0, within_seconds=1.9)) == Findings()
    near = judge(with_links(figures(3), ["ac", "bc"], ahead_seconds=2.0, within_seconds=0.001))
    assert near.bad_nodes == {}
    assert [warning[:29] for warning in near.warnings] == ["clocks differ by up to 2.0 s "]
    two = judge(with_links(figures(2), ["ab"], ahead_seconds=90.0))
    assert (two.bad_nodes, len(two.warnings)) == ({}, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_every_pair_of_nodes_meets_once_and_no_node_meets_two_at_a_time(size: int) -> None:
    plan = rounds(size)
    met = [pair for pairs in plan for pair in pairs]
    assert sorted(met) == list(itertools.combinations(range(size), 2))
    for pairs in plan:
        taken = [rank for pair in pairs for rank in pair]
        assert len(taken) == len(set(taken))
