"""The benchmarks compare equals: what they assert before they time anything. Times are never asserted."""

import socket
from pathlib import Path

import pytest

from benchmarks import harness, overhead


def test_our_loop_and_the_bare_one_agree_in_their_first_steps(tmp_path: Path) -> None:
    parity = overhead.assert_parity(tmp_path, "shipped-lora")
    assert parity["worst"] <= overhead.TOLERANCE
    assert len(parity["losses"]) == len(parity["grad_norms"]) == overhead.PARITY_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("case", ["shipped-full", "larger-lora", "larger-full"])
def test_they_agree_in_every_case(tmp_path: Path, case: str) -> None:
    assert overhead.assert_parity(tmp_path, case)["worst"] <= overhead.TOLERANCE


@pytest.mark.slow
def test_trl_trains_the_same_steps_on_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from benchmarks import vs_trl_cpu

    parity = vs_trl_cpu.assert_parity(tmp_path, "shipped")
    assert set(parity) == {*vs_trl_cpu.OURS, *vs_trl_cpu.TRL}


def test_a_failing_worker_is_an_error_with_its_last_words() -> None:
    with pytest.raises(harness.WorkerError, match="No such file"):
        harness.run_fresh("json.tool", ("/nonexistent/rows.json",))


def test_arms_are_interleaved() -> None:
    order: list[str] = []

    def arm(name: str) -> list[harness.Measurement]:
        order.append(name)
        return [{"n": len(order)}]

    results = harness.interleaved({"a": lambda: arm("a"), "b": lambda: arm("b")}, repeats=2)
    assert order == ["a", "b", "a", "b"]
    assert results == {"a": [[{"n": 1}], [{"n": 3}]], "b": [[{"n": 2}], [{"n": 4}]]}


def test_a_result_names_no_machine(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.json"
    harness.write_result(path, {"environment": harness.environment()})
    assert socket.gethostname() not in path.read_text()
    assert {"date", "git_commit", "device", "cores", "versions", "command"} <= set(harness.environment())
