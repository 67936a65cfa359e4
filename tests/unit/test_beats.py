"""A rank's last word can be read at any moment, and costs next to nothing."""

import os
import time
from pathlib import Path

import pytest

from distributed_ft import beats
from distributed_ft.beats import Pulse


def test_the_last_beat_of_each_rank_is_read_and_a_torn_one_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(beats.VARIABLE, str(tmp_path))
    for rank in (3, 5):
        pulse = Pulse(rank)
        pulse.beat(1_000_000, "validating")
        pulse.beat(rank, "saving")
        pulse.close()
    beats.note(5, "ValueError: no")
    heard = beats.read(tmp_path)
    assert {rank: (beat.pid, beat.step, beat.phase) for rank, beat in heard.items()} == {
        rank: (os.getpid(), rank, "saving") for rank in (3, 5)
    }
    assert beats.notes(tmp_path) == {5: "ValueError: no"}
    file = tmp_path / "rank-3"
    file.write_bytes(file.read_bytes()[:40])
    (tmp_path / "rank-4").touch()
    assert [*beats.read(tmp_path)] == [5]


def test_a_beat_takes_microseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(beats.VARIABLE, str(tmp_path))
    pulse = Pulse(0)
    seconds = []
    for step in range(500):
        begin = time.perf_counter()
        pulse.beat(step, "training")
        seconds.append(time.perf_counter() - begin)
    print(f"median of a beat: {1e6 * sorted(seconds)[250]:.1f} us")
    assert sorted(seconds)[250] < 100e-6


def test_without_a_launcher_that_watches_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(beats.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    Pulse(0).beat(1, "training")
    assert not [*tmp_path.iterdir()]
