"""What became of a job, and whether it begins again: every row of the decision."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, EXIT_USER
from launcher import attempts
from launcher.attempts import (
    BY_SLURM,
    LOST_IN_A_ROW,
    STOPPED_IN_A_ROW,
    Event,
    Job,
    NodeReport,
    judge,
    refusal,
    requeues,
)
from launcher.watch import LOST

A, B, C = "a", "b", "c"
NODES = (A, B)


def said(node: str, code: int, **more: Any) -> NodeReport:
    return NodeReport(node=node, code=code, **more)


def submitted(job: str = "1") -> Event:
    return Event(event="submit", job=job)


def begun(step: int = 0, job: str = "1", restart: int = 0) -> Event:
    return Event(event="begin", job=job, restart=restart, step=step)


def ended(outcome: Any, cause: str = "", step: int | None = None, action: str = "") -> Event:
    return Event(event="end", job="1", outcome=outcome, cause=cause, step=step, action=action)


KILLED = said(A, EXIT_FAULT, cause="SIGKILL", rank=1, step=7, message="rank 1 on a was ended by SIGKILL", at="10:00:02")
PEERS = said(B, EXIT_FAULT, cause=LOST, rank=2, step=7, message="rank 2 on b lost its peers", at="10:00:01")
STOPPED = (said(A, EXIT_STOPPED, step=7), said(B, EXIT_STOPPED, step=7))


@dataclass(frozen=True)
class Row:
    """What is known, and what follows: outcome, code, whether it begins again, words of the message, and more."""

    reports: tuple[NodeReport, ...]
    outcome: str
    code: int
    again: bool
    words: str
    asked: str = "none"
    ending: bool = False
    until_done: bool = True
    events: tuple[Event, ...] = ()
    step: int | None = None
    cause: str = ""
    exclude: tuple[str, ...] = ()
    nodes: tuple[str, ...] = field(default=NODES)


ROWS = {
    "all nodes are done": Row((said(A, EXIT_DONE), said(B, EXIT_DONE)), "finished", EXIT_DONE, False, "finished"),
    "all are done, and it was asked to stop": Row(
        (said(A, EXIT_DONE), said(B, EXIT_DONE)), "finished", EXIT_DONE, False, "finished", asked="USR1"
    ),
    "it was asked to stop": Row(STOPPED, "stopped", EXIT_STOPPED, True, "after step 7", asked="USR1"),
    "ranks were asked, and not the script": Row(STOPPED, "stopped", EXIT_STOPPED, True, "after step 7"),
    "one node is done already": Row(
        (said(A, EXIT_STOPPED, step=7), said(B, EXIT_DONE)), "stopped", EXIT_STOPPED, True, "after step 7"
    ),
    "it was asked before it began": Row(
        (said(A, EXIT_STOPPED), said(B, EXIT_STOPPED)),
        "stopped",
        EXIT_STOPPED,
        True,
        "before its first step",
        asked="TERM",
    ),
    "a node was asked before it could say a word": Row(
        (said(A, EXIT_STOPPED),), "stopped", EXIT_STOPPED, True, "before its first step", asked="USR1"
    ),
    "it was asked before there was any agent": Row(
        (), "stopped", EXIT_STOPPED, True, "before its first step", asked="USR1"
    ),
    "it was cancelled": Row(STOPPED, "stopped", EXIT_STOPPED, False, "after step 7", asked="TERM", ending=True),
    "one job, whatever it reaches": Row(
        STOPPED, "stopped", EXIT_STOPPED, False, "after step 7", asked="USR1", until_done=False
    ),
    "the user must change something": Row(
        (said(A, EXIT_USER, message="data.train: no such file"), PEERS), "refused", EXIT_USER, False, "no such file"
    ),
    "the user must, though it was asked to stop": Row(
        (said(A, EXIT_USER, cause="ConfigError: x"), said(B, EXIT_STOPPED)),
        *("refused", EXIT_USER, False, "ConfigError: x"),
        asked="USR1",
    ),
    "a node is not fit": Row(
        (said(A, EXIT_BAD_NODE, bad_nodes={B: "it has 3 GPU(s)"}), said(B, EXIT_BAD_NODE, bad_nodes={B: "it has 3"})),
        *("bad-node", EXIT_FAULT, True, "b is not fit for training: it has 3"),
        cause="bad node b",
        exclude=(B,),
    ),
    "a node that is not fit said nothing": Row(
        (said(A, EXIT_BAD_NODE, bad_nodes={B: "it did not begin"}),),
        *("bad-node", EXIT_FAULT, True, "it did not begin"),
        cause="bad node b",
        exclude=(B,),
    ),
    "two nodes are not fit, in a job that was cancelled": Row(
        (said(A, EXIT_BAD_NODE, bad_nodes={C: "slow", B: "no disk"}),),
        *("bad-node", EXIT_FAULT, False, "b is not fit for training: no disk; c is not fit for training: slow"),
        ending=True,
        nodes=(A, B, C),
        cause="bad node b,c",
        exclude=(B, C),
    ),
    "a rank was killed, and others lost it before": Row(
        (KILLED, PEERS), "failed", EXIT_FAULT, True, "rank 1 on a was ended by SIGKILL", step=7, cause="SIGKILL"
    ),
    "a rank was killed while the others stopped": Row(
        (KILLED, said(B, EXIT_STOPPED, step=7)),
        *("failed", EXIT_FAULT, True, "SIGKILL"),
        asked="USR1",
        step=7,
        cause="SIGKILL",
    ),
    "the first of two that failed": Row(
        (KILLED, said(B, EXIT_FAULT, cause="SIGSEGV", step=6, at="10:00:01")),
        *("failed", EXIT_FAULT, True, "SIGSEGV"),
        step=6,
        cause="SIGSEGV",
    ),
    "all lost their peers": Row(
        (PEERS, said(A, EXIT_FAULT, cause=LOST, step=6, at="10:00:02", message="rank 0 on a lost its peers")),
        *("failed", EXIT_FAULT, True, "rank 2 on b lost its peers"),
        step=7,
        cause=LOST,
    ),
    "a node is silent, and the other lost it": Row(
        (PEERS,), "failed", EXIT_FAULT, True, "a gave no word: the node is lost", step=7, cause="no word from a"
    ),
    "a node is silent, and the other failed by itself": Row(
        (KILLED,), "failed", EXIT_FAULT, True, "SIGKILL", step=7, cause="SIGKILL"
    ),
    "a node is silent, and the other is done": Row(
        (said(A, EXIT_DONE),), "failed", EXIT_FAULT, True, "b gave no word", cause="no word from b"
    ),
    "a node is silent, and the other stopped unasked": Row(
        (said(A, EXIT_STOPPED),), "failed", EXIT_FAULT, True, "b gave no word", cause="no word from b"
    ),
    "no node said a word": Row((), "failed", EXIT_FAULT, True, "a, b gave no word", cause="no word from a, b"),
    "it failed, and was cancelled": Row(
        (KILLED, PEERS), "failed", EXIT_FAULT, False, "SIGKILL", ending=True, step=7, cause="SIGKILL"
    ),
    "the same failure twice": Row(
        (KILLED, PEERS),
        *("failed", EXIT_FAULT, False, "the same failure at the same step as the time before"),
        events=(submitted(), begun(), ended("failed", "SIGKILL", 7), begun(restart=1)),
        step=7,
        cause="SIGKILL",
    ),
    "another failure at that step": Row(
        (KILLED, PEERS),
        *("failed", EXIT_FAULT, True, "SIGKILL"),
        events=(submitted(), begun(), ended("failed", "SIGSEGV", 7), begun(restart=1)),
        step=7,
        cause="SIGKILL",
    ),
    "the same failure at another step": Row(
        (KILLED, PEERS),
        *("failed", EXIT_FAULT, True, "SIGKILL"),
        events=(submitted(), begun(), ended("failed", "SIGKILL", 6), begun(restart=1)),
        step=7,
        cause="SIGKILL",
    ),
    "the same failure, with a stop in between": Row(
        (KILLED, PEERS),
        *("failed", EXIT_FAULT, True, "SIGKILL"),
        events=(submitted(), begun(), ended("failed", "SIGKILL", 7), begun(), ended("stopped"), begun(restart=2)),
        step=7,
        cause="SIGKILL",
    ),
    "the same failure, submitted anew since": Row(
        (KILLED, PEERS),
        *("failed", EXIT_FAULT, True, "SIGKILL"),
        events=(submitted(), begun(), ended("failed", "SIGKILL", 7), submitted("2"), begun(job="2")),
        step=7,
        cause="SIGKILL",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_a_job_came_to(name: str) -> None:
    row = ROWS[name]
    reports = {report.node: report for report in row.reports}
    verdict = judge(reports, row.nodes, row.asked, row.ending, row.until_done, row.events)
    assert (verdict.outcome, verdict.code, verdict.again) == (row.outcome, row.code, row.again)
    assert row.words in verdict.message
    assert (verdict.step, verdict.cause, verdict.exclude) == (row.step, row.cause, row.exclude)


STUCK = tuple(begun(20, restart=restart) for restart in range(LOST_IN_A_ROW))
TOLD_LATER = ended("failed", "no word from a, b", action=BY_SLURM)  # by the start after it

REFUSALS: dict[str, tuple[tuple[Event, ...], int, int, str | None]] = {
    "the first start": ((submitted(),), 0, 50, None),
    "by hand, without a submission": ((), 0, 50, None),
    "requeued as often as allowed": ((submitted(), *(begun(step) for step in range(4))), 9, 4, None),
    "requeued once more": (
        (submitted(), *(begun(step) for step in range(5))),
        *(9, 4, "it was requeued 4 times, and 4 are allowed (max_requeues)"),
    ),
    "no requeue is allowed": ((submitted(), begun()), 0, 0, "0 are allowed"),
    "requeued too often before it was submitted anew": (
        (submitted(), *(begun(step) for step in range(5)), submitted("2")),
        *(9, 4, None),
    ),
    "three silent starts in a row": (
        (submitted(), *STUCK),
        20,
        50,
        "3 jobs in a row failed or were lost after step 20",
    ),
    "three silent starts, each told of by the next": (
        (submitted(), *(event for start in STUCK for event in (start, TOLD_LATER))),
        *(20, 50, "3 jobs in a row failed or were lost after step 20"),
    ),
    "three starts whose scripts were killed after they had stopped": (
        (submitted(), *(event for start in STUCK for event in (start, ended("stopped", action=BY_SLURM)))),
        *(20, 50, None),
    ),
    "asked to stop ten times before any checkpoint": (
        (submitted(), *(event for _ in range(STOPPED_IN_A_ROW) for event in (begun(20), ended("stopped")))),
        *(20, 50, "asked to stop 10 times in a row after step 20"),
    ),
    "two silent starts in a row": ((submitted(), *STUCK[1:]), 20, 50, None),
    "three silent starts, and then a checkpoint": ((submitted(), *STUCK), 30, 50, None),
    "three starts, one of which said how it ended": (
        (submitted(), STUCK[0], ended("stopped"), *STUCK[1:]),
        *(20, 50, None),
    ),
    "three silent starts, submitted anew since": ((submitted(), *STUCK, submitted("2")), 20, 50, None),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_whether_a_job_may_begin(name: str) -> None:
    events, step, allowed, why = REFUSALS[name]
    found = refusal(events, step, allowed)
    assert found is None if why is None else why in (found or "")


def test_requeues_are_counted_from_the_last_submission() -> None:
    assert requeues([]) == requeues([submitted()]) == requeues([submitted(), begun()]) == 0
    assert requeues([submitted(), begun(), begun(), begun()]) == 2
    assert requeues([submitted(), begun(), begun(), submitted("2"), begun(job="2")]) == 0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run, job = RunDirectory(tmp_path), Job("12", 3, NODES)
    assert attempts.history(run) == []
    events = [submitted("12"), begun(5, "12", 3), ended("failed", "SIGKILL", 7)]
    for event in events:
        attempts.record(run, event)
    assert attempts.history(run) == events
    for report in (KILLED, PEERS):
        attempts.report(run, job, report)
    assert attempts.reports(run, job) == {A: KILLED, B: PEERS}
    assert attempts.reports(run, Job("12", 4, NODES)) == {}
