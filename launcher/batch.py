"""`python -m launcher.batch begin|late|end RUN`: what a batch script does around the training.

`begin` refuses where another job trains the run, or where it was requeued too often. `end` says how the job ended and
has it requeued, at most once. `late` does so before the end, where the time is over and the job is about to be killed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from distributed_ft.artifacts import RunDirectory, read_json, write_json
from distributed_ft.errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, CheckpointError, ConfigError
from launcher import attempts, slurm
from launcher.attempts import Event, Job, Verdict
from launcher.guard import guarded

LINGER_SECONDS = 300.0  # that the lock of this job's former start may outlast it (on NFS by its lease)
CONTROLLER_SECONDS = 300.0  # for a controller that does not answer to come back


def main(arguments: list[str] | None = None) -> int:
    """Exit code of `begin`: 0 go on. Of `end`: the job's."""
    parser = argparse.ArgumentParser(prog="python -m launcher.batch", description=__doc__)
    parser.add_argument("what", choices=("begin", "late", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--asked", default="none", help="the request to stop that came: USR1, TERM or none")
    options = parser.parse_args(arguments)
    run = RunDirectory(options.run)
    what = {"begin": lambda: begin(run), "late": lambda: late(run), "end": lambda: end(run, options.asked)}
    return guarded(what[options.what])


def begin(run: RunDirectory) -> int:
    """Note that this start begins. Returns 0, or 1 where it shall not (said on stderr): it failed too often.

    Raises CheckpointError when another job trains there, or it is no run directory."""
    if not run.config.is_file():
        raise CheckpointError(f"{run.path}: not a run directory; `dft train run.yaml --prepare-only` makes one")
    job, events = Job.of_environment(), attempts.history(run)
    _refuse_second(run, job, events)
    events = [*events, *_by_hand(run, job, events)]
    events = [*events, *_last_words(run, events)]
    step = newest_step(run)
    why = attempts.refusal(events, step, _setting("DFT_MAX_REQUEUES", 50))
    if why is not None:
        print(f"dft: {run.path}: not started again: {why}; look at {run.slurm}, then submit it anew", file=sys.stderr)
        attempts.record(run, _ended(job, Verdict("failed", EXIT_FAULT, why), "nothing"))
        return EXIT_FAULT
    attempts.record(
        run, Event(event="begin", job=job.number, restart=job.restart, at=attempts.now(), nodes=job.nodes, step=step)
    )
    print(f"dft: job {job.number}, start {job.restart}: {run.path} goes on after step {step} on {', '.join(job.nodes)}")
    return EXIT_DONE


def end(run: RunDirectory, asked: str) -> int:
    """Judge what the nodes said, and requeue where the run is to go on. Returns the exit code of the job.

    asked: the request to stop that the batch script heard: USR1, TERM or none."""
    job, events = Job.of_environment(), attempts.history(run)
    ending = _is_being_ended(job.number)
    verdict = attempts.judge(attempts.reports(run, job), job.nodes, asked, ending, _until_done(), events)
    if any((event.event, event.job, event.restart) == ("end", job.number, job.restart) for event in events):
        return verdict.code  # `late` has seen to it
    lost = ending and verdict.outcome == "failed"  # a node, which is Slurm's affair
    action = "left to Slurm" if lost else "nothing"
    if verdict.again:
        try:
            action = _again(run, job, verdict)
        except ConfigError as error:
            action = f"not requeued: {error}"
    attempts.record(run, _ended(job, verdict, action))
    print(f"dft: job {job.number}, start {job.restart}: {verdict.outcome}: {verdict.message}", end="")
    print("" if action == "nothing" else f"; {action}", flush=True)
    return verdict.code


def late(run: RunDirectory) -> int:
    """The batch script was told to end. If that is because its time is over, it will be killed in a few seconds, with a
    checkpoint half-written perhaps: the last moment to be requeued. (A job that was cancelled stays so.)"""
    job = Job.of_environment()
    if _until_done() and _known(job.number).get("Reason") == "TimeLimit":
        verdict = Verdict("stopped", EXIT_STOPPED, "the time was over before the training had stopped", again=True)
        attempts.record(run, _ended(job, verdict, _again(run, job, verdict)))
    return EXIT_DONE


def newest_step(run: RunDirectory) -> int:
    """Step of the checkpoint that LATEST names, which was whole when it was published; 0 before the first."""
    latest = run.pointer("LATEST")
    return latest.step if latest is not None else 0


def _by_hand(run: RunDirectory, job: Job, events: list[Event]) -> list[Event]:
    """A job that somebody submitted with sbatch: it begins anew what is counted, and is the one to ask for from now."""
    file = run.slurm / "job.json"
    record = read_json(file) if file.exists() else {"schema": 1, "eval_job": None, "options": {}}
    submitted = {job.number, job.number.partition("_")[0]}
    if job.restart or record.get("job") in submitted:
        return []
    event = Event(event="submit", job=job.number, at=attempts.now())
    attempts.record(run, event)
    write_json(file, {**record, "job": job.number})
    return [event]


def _last_words(run: RunDirectory, events: list[Event]) -> list[Event]:
    """The ending of the start before, where its batch script was killed before it could tell: its node was lost."""
    before = next((event for event in reversed(events) if event.event in ("begin", "end")), None)
    if before is None or before.event == "end":
        return []
    job = Job(before.job, before.restart, before.nodes)
    verdict = attempts.judge(attempts.reports(run, job), job.nodes, "none", True, True, events)
    print(f"dft: job {job.number}, start {job.restart}: {verdict.outcome}: {verdict.message}")
    ended = _ended(job, verdict, attempts.BY_SLURM)
    attempts.record(run, ended)
    return [ended]


def _ended(job: Job, verdict: Verdict, action: str) -> Event:
    return Event(
        event="end",
        job=job.number,
        restart=job.restart,
        at=attempts.now(),
        step=verdict.step,
        outcome=verdict.outcome,
        cause=verdict.cause,
        message=verdict.message,
        action=action,
    )


def _refuse_second(run: RunDirectory, job: Job, events: list[Event]) -> None:
    """Where the file system has no locks, Slurm knows whether the other job lives. This job's former start may still be
    leaving."""
    begun = [event for event in events if event.event == "begin" and event.job != job.number]
    ended = {(event.job, event.restart) for event in events if event.event == "end"}
    for event in begun:
        if (event.job, event.restart) not in ended and slurm.state(event.job) == "RUNNING":
            nodes = ", ".join(event.nodes)
            raise CheckpointError(f"{run.path}: job {event.job} is training there (on {nodes}); wait, or cancel it")
    deadline = time.monotonic() + LINGER_SECONDS
    while True:
        try:
            with run.lock():
                return
        except CheckpointError as error:
            if f"(job {job.number}," not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _is_being_ended(number: str) -> bool:
    """Whether Slurm ends this job because it was cancelled; requeueing would bring it back."""
    known = _known(number)
    return known.get("JobState", "RUNNING") != "RUNNING" and known.get("Reason") != "TimeLimit"


def _again(run: RunDirectory, job: Job, verdict: Verdict) -> str:
    """Requeue, or submit anew where Slurm refuses that; without the nodes that are not fit. Returns what was done."""
    former = _known(job.number).get("ExcNodeList", "(null)")
    excluded = ",".join([*([] if former == "(null)" else [former]), *verdict.exclude])
    without = f" without {', '.join(verdict.exclude)}" if verdict.exclude else ""
    refused = slurm.requeue(job.number)
    if refused is None and verdict.exclude:  # Slurm takes it only of a job that does not run, so in this order
        refused = slurm.exclude(job.number, excluded)
        return f"requeued{without if refused is None else ''}"
    if refused is None:
        return "requeued"
    if slurm.state(job.number) in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        return attempts.BY_SLURM  # it was quicker
    print(f"dft: Slurm would not requeue job {job.number} ({refused}); it is submitted anew", file=sys.stderr)
    options = [f"--dependency=afterany:{job.number}", *([f"--exclude={excluded}"] if excluded else [])]
    number = slurm.submit(run.slurm / "train.sbatch", options)
    submitted = run.slurm / "job.json"
    if submitted.exists():
        write_json(submitted, {**read_json(submitted), "job": number})
    return f"submitted anew as job {number}{without}"


def _known(number: str) -> dict[str, str]:
    """What Slurm says of this job, which it knows: silence is that of a controller that is away for a while."""
    deadline = time.monotonic() + CONTROLLER_SECONDS
    while not (known := slurm.job(number)) and time.monotonic() < deadline:
        time.sleep(2)
    return known


def _until_done() -> bool:
    return _setting("DFT_UNTIL_DONE", 1) > 0


def _setting(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


if __name__ == "__main__":
    sys.exit(main())
