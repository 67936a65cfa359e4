"""What became of a run's jobs: a line when one begins and one when it ends, and what each node had to say.

`slurm/attempts.jsonl` is written by the batch script alone, `slurm/attempts/JOB.RESTART/node-NAME.json` by each
node's agent. What follows from it is decided by `refusal` and `judge`, which are pure.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from distributed_ft.artifacts import RunDirectory, append_json_line, read_json, read_json_lines, write_json
from distributed_ft.errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, EXIT_USER
from distributed_ft.records import Record
from launcher.watch import LOST

LOST_IN_A_ROW = 3  # jobs that failed before any new checkpoint, whatever the cause, until a person has to look
STOPPED_IN_A_ROW = 10  # the same of jobs that were only asked to stop
BY_SLURM = "requeued by Slurm"  # the action of a line that the next start wrote for one whose batch script was killed

Outcome = Literal["finished", "stopped", "refused", "failed", "bad-node"]


class Event(Record):
    """A line of `attempts.jsonl`. `step`: of the newest checkpoint at the beginning; of the failure at the end."""

    event: Literal["submit", "begin", "end"]
    job: str
    restart: int = 0
    at: str = ""  # ISO 8601, UTC
    nodes: tuple[str, ...] = ()
    step: int | None = None
    outcome: Outcome | None = None
    cause: str = ""  # two failures of the same cause at the same step are the same
    message: str = ""
    action: str = ""  # what was done: requeued, resubmitted as …, nothing


class NodeReport(Record):
    """How a node's ranks ended, by its agent; `rank`, `step` and `cause` are those of the first that failed."""

    node: str
    code: int
    message: str = ""
    rank: int | None = None
    step: int | None = None
    cause: str = ""
    at: str = ""  # ISO 8601, UTC
    bad_nodes: dict[str, str] = Field({})  # what the pre-flight found: node -> reason


@dataclass(frozen=True)
class Verdict:
    """What a job came to, and whether it shall be put into the queue again, without the nodes in `exclude`."""

    outcome: Outcome
    code: int
    message: str
    again: bool = False
    exclude: tuple[str, ...] = ()
    step: int | None = None
    cause: str = ""


@dataclass(frozen=True)
class Job:
    """This start of this job."""

    number: str  # as Slurm's commands take it; of an array's task `12_3`
    restart: int
    nodes: tuple[str, ...]
    serial: int = 0  # no other job's, a task's of an array neither

    @staticmethod
    def of_environment() -> "Job":
        """As the batch script has it."""
        nodes = tuple(os.environ.get("DFT_NODES", "").split(","))
        serial = os.environ["SLURM_JOB_ID"]
        number = os.environ.get("DFT_JOB") or serial
        return Job(number, int(os.environ.get("SLURM_RESTART_COUNT") or 0), nodes, int(serial))

    def folder(self, run: RunDirectory) -> Path:
        """Where its nodes' reports are."""
        return run.slurm / "attempts" / f"{self.number}.{self.restart}"

    def stop_file(self, run: RunDirectory) -> Path:
        """There when the batch script was asked to stop: srun loses a signal that comes before its tasks can hear."""
        return self.folder(run) / "stop"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def history(run: RunDirectory) -> list[Event]:
    """All that happened to the run's jobs, oldest first."""
    found = []
    for line in read_json_lines(run.slurm / "attempts.jsonl"):
        with suppress(ValidationError):  # of another version
            found.append(Event(**line))
    return found


def record(run: RunDirectory, event: Event) -> None:
    """Add a line."""
    append_json_line(run.slurm / "attempts.jsonl", {"schema": 1, **event.model_dump(exclude_defaults=True)})


def report(run: RunDirectory, job: Job, said: NodeReport) -> None:
    """What a node's agent says, for `reports`."""
    write_json(job.folder(run) / f"node-{said.node}.json", {"schema": 1, **said.model_dump()})


def reports(run: RunDirectory, job: Job) -> dict[str, NodeReport]:
    """What was said, by node; a node that is lost said nothing."""
    found = [NodeReport(**read_json(path)) for path in sorted(job.folder(run).glob("node-*.json"))]
    return {said.node: said for said in found}


def requeues(events: Sequence[Event]) -> int:
    """How often the run's job began again since it was submitted."""
    return max(0, sum(event.event == "begin" for event in since_submission(events)) - 1)


def refusal(events: Sequence[Event], step: int, max_requeues: int) -> str | None:
    """Why a job that is about to begin shall not; `step` is the newest checkpoint's. Pure."""
    begun = since_submission(events)
    if sum(event.event == "begin" for event in begun) > max_requeues:
        return f"it was requeued {requeues(begun)} times, and {max_requeues} are allowed (max_requeues)"
    starts: list[tuple[int | None, Outcome | None]] = []  # the step of each, and how it ended
    for event in begun:
        if event.event == "begin":
            starts.append((event.step, None))
        elif event.event == "end" and starts:
            starts[-1] = (starts[-1][0], event.outcome)
    in_a_row = [*itertools.takewhile(lambda start: start[0] == step, reversed(starts))]
    stops = sum(outcome == "stopped" for _, outcome in in_a_row)
    if stops >= STOPPED_IN_A_ROW:
        return f"it was asked to stop {stops} times in a row after step {step}, and never reached another checkpoint"
    failed = len(in_a_row) - stops
    if failed >= LOST_IN_A_ROW:
        return f"{failed} jobs in a row failed or were lost after step {step}, and none reached another checkpoint"
    return None


def judge(
    said: Mapping[str, NodeReport],
    nodes: Sequence[str],
    asked: str,
    ending: bool,
    until_done: bool,
    events: Sequence[Event],
) -> Verdict:
    """What a job came to. Pure.

    Args:
        said: the nodes' reports; nodes: all nodes of the job.
        asked: the request to stop that the batch script heard, or `none`.
        ending: Slurm is ending the job (cancelled), so it must not go into the queue again.
        until_done: whether it shall be requeued until the run is finished.
        events: what happened before.
    """
    codes = {report.code for report in said.values()}
    silent = [node for node in nodes if node not in said]
    again = until_done and not ending
    if EXIT_USER in codes:
        first = next(report for report in said.values() if report.code == EXIT_USER)
        return Verdict("refused", EXIT_USER, first.message or first.cause)
    bad = {node: why for report in said.values() for node, why in report.bad_nodes.items()}
    if bad:
        names = tuple(sorted(bad))
        message = "; ".join(f"{node} is not fit for training: {bad[node]}" for node in names)
        return Verdict("bad-node", EXIT_FAULT, message, again, names, None, f"bad node {','.join(names)}")
    if not silent and codes == {EXIT_DONE}:
        return Verdict("finished", EXIT_DONE, "the run is finished")
    stopped = asked != "none" or (EXIT_STOPPED in codes and not silent)  # a node may be asked before it can say a word
    if stopped and codes <= {EXIT_DONE, EXIT_STOPPED}:
        return Verdict("stopped", EXIT_STOPPED, _stop_message(said), again)
    failed = _first_to_fail([report for report in said.values() if report.code not in (EXIT_DONE, EXIT_STOPPED)])
    if silent and (failed is None or failed.cause == LOST):
        cause, step = f"no word from {', '.join(silent)}", failed.step if failed else None
        message = f"{', '.join(silent)} gave no word: the node is lost, or its processes were killed"
    else:
        assert failed is not None
        cause, step, message = failed.cause, failed.step, failed.message or failed.cause
    if again and _same_failure_before(events, cause, step):
        message = f"{message}; the same failure at the same step as the time before, so it is not started again"
        return Verdict("failed", EXIT_FAULT, message, step=step, cause=cause)
    return Verdict("failed", EXIT_FAULT, message, again, step=step, cause=cause)


def _stop_message(said: Mapping[str, NodeReport]) -> str:
    steps = [report.step for report in said.values() if report.step]
    if steps:
        return f"stopped on request after step {max(steps)}"
    return next((report.message for report in said.values() if report.message), "stopped before its first step")


def _first_to_fail(failed: Sequence[NodeReport]) -> NodeReport | None:
    """Ranks that lost their peers are consequences of another's failure, whatever the clocks say."""
    return min(failed, key=lambda report: (report.cause == LOST, report.at), default=None)


def _same_failure_before(events: Sequence[Event], cause: str, step: int | None) -> bool:
    ended = [event for event in since_submission(events) if event.event == "end"]
    return bool(ended) and ended[-1].outcome == "failed" and (ended[-1].cause, ended[-1].step) == (cause, step)


def since_submission(events: Sequence[Event]) -> Sequence[Event]:
    """A person who submits anew has looked."""
    last = max((i for i, event in enumerate(events) if event.event == "submit"), default=-1)
    return events[last + 1 :]
