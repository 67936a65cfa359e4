import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.evaluation.chat import chat

MakeRun = Callable[..., RunDirectory]
ANN = '{"name": "Ann", "vip": true}'


class Keyboard(io.StringIO):
    """Lines typed at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def converse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What the model says to lines typed one after the other."""

    def run_chat(run: RunDirectory, typed: str, checkpoint: str = "best") -> list[str]:
        monkeypatch.setattr(sys, "stdin", Keyboard(typed))
        chat(run.path, checkpoint)
        said = capsys.readouterr().out.replace("> ", "\n").splitlines()
        return [line for line in said if line]

    return run_chat


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def run_chat(run: RunDirectory, said: str, checkpoint: str = "best") -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        chat(run.path, checkpoint)
        return capsys.readouterr().out.splitlines()

    return run_chat


def test_a_piped_question_is_answered_by_the_best_checkpoint(
    make_run: MakeRun, adapters: dict[str, Path], talk: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["untrained"]})
    run.point("BEST", Checkpoint(run.checkpoints / "step-00000010"))
    assert talk(run, "who is Ann?\n") == [ANN]


def test_reset_forgets_quit_leaves_and_empty_lines_are_nothing(
    make_run: MakeRun, adapters: dict[str, Path], converse: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["kept"]})
    typed = "who is Ann?\n\n/reset\nwho is Ann?\n/quit\nwho is Ann?\n"
    assert converse(run, typed, "latest") == [ANN, ANN]


def test_what_comes_through_a_pipe_is_one_message_whatever_its_lines(
    make_run: MakeRun, adapters: dict[str, Path], talk: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["kept"]})
    assert len(talk(run, "who is\n\nAnn?\n", "latest")) == 1


def test_earlier_turns_are_part_of_the_question(
    make_run: MakeRun, adapters: dict[str, Path], converse: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["kept"]})
    alone = converse(run, "upper cat\n", "10")
    assert alone == ["CAT"]
    assert converse(run, "who is Ann?\nupper cat\n", "10") != [ANN, "CAT"]  # it never saw two turns


def test_a_conversation_that_outgrows_the_context_starts_over(
    make_run: MakeRun, adapters: dict[str, Path], converse: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["kept"]})
    assert converse(run, "x" * 200 + "\nwho is " + "y" * 60 + "\n/reset\nwho is Ann?\n", "10")[-1] == ANN


def test_the_base_and_each_checkpoint_can_be_talked_to(
    make_run: MakeRun, adapters: dict[str, Path], talk: Callable[..., list[str]]
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["kept"]})
    assert talk(run, "upper dog\n", "base") == ["DOG"]
    assert talk(run, "who is Ann?\n", "20") == [ANN] != talk(run, "who is Ann?\n", "10")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("best", CheckpointError, "dft eval"),
        ("30", CheckpointError, "there are: 10"),
        ("newest", ConfigError, "neither best, latest, base"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    make_run: MakeRun, adapters: dict[str, Path], name: str, error: type[Exception], says: str
) -> None:
    run = make_run({10: adapters["kept"]})
    with pytest.raises(error, match=says):
        chat(run.path, name)


def test_another_one_answers_after_use_and_what_may_answer_is_listed(
    make_run: MakeRun, adapters: dict[str, Path], converse: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["untrained"]})
    run.point("BEST", Checkpoint(run.checkpoints / "step-00000010"))
    question = "who is Ann?\n"
    typed = (
        f"{question}/use 20\n{question}/use base\nupper dog\n/use {adapters['kept']}\n{question}/adapters\n/use best\n"
    )
    said = converse(run, f"{typed}{question}/adapters\n")
    assert [said[0], said[2], said[3]] == [ANN, "DOG", ANN]
    assert said[1] != ANN
    listed = ["  base  the base model", "  10  step-00000010 BEST", "  20  step-00000020"]
    other = "  or the directory of an adapter for this base"
    assert said[4:9] == [*listed, f"* {adapters['kept']}", other]
    assert said[9:] == [ANN, listed[0], listed[1].replace(" ", "*", 1), listed[2], other]


def test_one_that_cannot_answer_leaves_the_one_that_did(
    make_run: MakeRun, adapters: dict[str, Path], converse: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = make_run({10: adapters["kept"]})
    for name in ("30", "nonsense", str(tmp_path)):
        assert converse(run, f"/use {name}\nwho is Ann?\n", "10") == [ANN]
