"""Which checkpoints of a run are meant: by name, by step, scored before, or kept by a driver although they are gone."""

import sys
from collections.abc import Sequence

from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.errors import CheckpointError, ConfigError


def named(run: RunDirectory, names: str) -> list[Checkpoint]:
    """The complete checkpoints that `all`, `latest` or `500,1000` means, oldest first.

    `all` passes over damaged ones, with a line on stderr, unless none is whole. Raises CheckpointError or ConfigError.
    """
    if names == "all":
        newest = run.newest_complete()  # refuses when there are some and all are damaged
        if newest is None:
            print(f"{run.path} has no checkpoint yet: only the base model is scored", file=sys.stderr)
        return [c for c in run.all_checkpoints() if _whole(c)]
    if names == "latest":
        newest = run.newest_complete()
        if newest is None:
            raise CheckpointError(f"{run.path}: no checkpoint yet; train first: dft train {run.path}")
        return [newest]
    steps = [part.strip() for part in names.split(",")]
    if not all(step.isdecimal() for step in steps):
        raise ConfigError(f"--checkpoints: {names!r} is neither all, latest nor steps such as 500,1000")
    return [at_step(run, step) for step in sorted(set(map(int, steps)))]


def at_step(run: RunDirectory, step: int) -> Checkpoint:
    """The complete checkpoint of a step. Raises CheckpointError, naming those there are."""
    found = {checkpoint.step: checkpoint for checkpoint in run.all_checkpoints()}
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise CheckpointError(f"{run.checkpoints}: no checkpoint of step {step} (there are: {there})")
    problem = found[step].verify()
    if problem is not None:
        raise CheckpointError(f"{found[step].path} is damaged: {problem}; choose another, or restore it from a copy")
    return found[step]


def _whole(checkpoint: Checkpoint) -> bool:
    problem = checkpoint.verify()
    if problem is not None:
        print(f"not scored, damaged or unfinished: {problem}", file=sys.stderr)
    return problem is None


def scored_before(run: RunDirectory, wanted: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Complete checkpoints that were scored before, besides those asked for."""
    steps = {checkpoint.step for checkpoint in wanted}
    before = [c for c in run.all_checkpoints() if c.step not in steps and (run.evaluation / c.name).is_dir()]
    return [c for c in before if c.verify() is None]


def kept_by_claims(claims: Sequence[Checkpoint], wanted: Sequence[Checkpoint]) -> list[Checkpoint]:
    """What a driver that followed the training had kept for scoring, of checkpoints that are gone."""
    steps = {checkpoint.step for checkpoint in wanted}
    return [claim for claim in claims if claim.step not in steps and claim.verify("model/") is None]
