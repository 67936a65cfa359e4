"""Ranks sign a list; without one they end as they would."""

import signal
from pathlib import Path

import pytest

from distributed_ft import roll


def test_the_list_says_who_is_there_and_in_which_order_the_others_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roll"
    path.write_text('{"rank": 0, "pid": 5}\n{"rank": 1, "pid": 6}\n{"rank": 2, "pid": 7}\n')
    monkeypatch.setenv(roll.VARIABLE, str(path))
    try:
        assert [roll.sign_out(2, 75), roll.sign_out(0, 1)] == [0, 1], "the launcher is told of faults only"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    found = roll.read(path)
    assert found.present == {1: 6}
    assert list(found.ended.items()) == [(2, 75), (0, 1)]


def test_without_a_list_a_rank_ends_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(roll.VARIABLE, raising=False)
    roll.sign_in(0)
    assert [roll.sign_out(0, code) for code in (0, 1, 2, 75)] == [0, 1, 2, 75]
