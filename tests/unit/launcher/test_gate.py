"""`dft report RUN --gate`: the verdict as an exit code."""

from pathlib import Path

import pytest
from support.report_runs import FORGETTING, HEALTHY, Models, make_run

from distributed_ft.artifacts import step_name
from launcher.cli import main

UNSCORED: Models = {step_name(100): (None, None)}


@pytest.mark.parametrize(
    ("models", "code", "line"),
    [
        (HEALTHY, 0, "ship: Step 300 scores 94% on tickets"),
        (FORGETTING, 3, "do_not_ship: Catastrophic forgetting: step 300 scores 95% on tickets"),
        (UNSCORED, 4, "not_enough_evidence: No checkpoint has been evaluated on a task yet."),
    ],
)
def test_the_verdict_is_the_exit_code_and_the_only_line_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models: Models, code: int, line: str
) -> None:
    run = make_run(tmp_path, models)
    run.run_yaml.touch()
    assert main(["report", str(run.path), "--gate"]) == code
    told = capsys.readouterr()
    assert told.out.startswith(line)
    assert len(told.out.splitlines()) == 1
    assert str(run.report("html")) in told.err
    assert main(["report", str(run.path)]) == 0  # a report that was written is no failure
    assert str(run.report("html")) in capsys.readouterr().out


def test_a_run_that_is_not_there_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none"), "--gate"]) == 2
    assert capsys.readouterr().out == ""
