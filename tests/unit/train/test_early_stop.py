"""Which verdict of the eval driver a training obeys."""

from pathlib import Path

import pytest

from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.publishing import publish, staging, tidy
from distributed_ft.train.early_stop import EarlyStop


def say(run: RunDirectory, stop: bool = True, step: int = 30) -> None:
    verdict = {"schema": 1, "stop": stop, "reason": "it does not rise", "step": step, "best_step": 10}
    write_json(run.stop_verdict, verdict)


def test_a_verdict_is_obeyed_from_the_step_on_that_it_is_about(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    early = EarlyStop(run)
    assert early.reason(99) is None
    say(run)
    assert early.reason(29) is None
    assert early.reason(30) == early.reason(31) == "it does not rise"


def test_another_verdict_takes_the_place_of_the_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    early = EarlyStop(run)
    say(run)
    assert early.reason(30) is not None
    say(run, stop=False)
    assert early.reason(30) is None
    say(run)
    assert early.reason(30) is not None
    run.stop_verdict.unlink()
    assert early.reason(30) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"stop": true}', '{"stop": "later", "step": 1}'])
def test_what_is_no_verdict_stops_nothing(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.evaluation.mkdir()
    run.stop_verdict.write_text(content)
    assert EarlyStop(run).reason(99) is None
    tidy(run, None)


@pytest.mark.parametrize(("newest", "kept"), [(None, False), (20, False), (30, True), (40, True)])
def test_a_verdict_on_checkpoints_that_are_still_to_come_goes_when_a_training_begins(
    tmp_path: Path, newest: int | None, kept: bool
) -> None:
    run = RunDirectory(tmp_path)
    say(run)
    checkpoint = None if newest is None else publish(run, staging(run, newest), newest, 1)
    tidy(run, checkpoint)
    assert run.stop_verdict.exists() == kept
