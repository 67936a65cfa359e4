"""Several processes give the answers of one, to the last bit, whatever happens to them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import CheckpointError, EngineError, EvaluationError
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.engines.crew import Crew
from distributed_ft.evaluation.task import Choose, Generate, Read, Request, Response
from distributed_ft.evaluation.watch import watch
from distributed_ft.records import Progress

MakeRun = Callable[..., RunDirectory]
WORDS = ("cat", "dog", "a request of more words, to force padding", "x", "who is Ann?", "sun sun", "ten", "two")


def requests() -> list[Request]:
    found: list[Request] = []
    for word in WORDS:
        ask = (Message("user", word),)
        found += [Generate(word, ask, 12), Choose(word, ask, ("CAT", "A", "something else")), Read(word, word * 3)]
        found.append(Generate(f"{word} drawn", ask, 6, draws=2, temperature=1.5))
        found.append(Choose(f"{word} as a text", (Message(TEXT, word),), (" yes", " no")))
    return found


def answered(engine: TransformersEngine | Crew) -> dict[int, Response]:
    batches = engine.batches(requests())
    found: dict[int, Response] = {}
    for which, answers in engine.answers([[requests()[i] for i in batch] for batch in batches]):
        found |= zip(batches[which], answers, strict=True)
    return found


@pytest.fixture
def crew(base: Path) -> Iterator[Crew]:
    made = Crew(TransformersEngine(str(base), "fp32", batch_size=4), 2, ["cpu", "cpu"])
    yield made
    made.close()


def alive(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], within: float = 30.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_two_processes_answer_as_one_and_their_errors_are_its_errors(
    crew: Crew, base: Path, adapters: dict[str, Path], tmp_path: Path, tokenizer: object
) -> None:
    alone = TransformersEngine(str(base), "fp32", batch_size=4)
    assert (crew.digest, crew.settings, crew.context) == (alone.digest, alone.settings, alone.context)
    for weights in (None, adapters["kept"], None):
        alone.use(weights)
        crew.use(weights)
        assert answered(crew) == answered(alone)

    shutil.copytree(adapters["kept"], tmp_path / "nan")
    file = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}, file)
    crew.use(tmp_path / "nan")
    alone.use(tmp_path / "nan")
    said = []
    for engine in (crew, alone):
        with pytest.raises(EvaluationError, match="logits are not finite") as raised:
            answered(engine)
        said.append(str(raised.value))
    assert said[0] == said[1]  # of the first batch, whoever came first
    save_file({name: tensor[..., :1].contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointError, match="for another base"):
        crew.use(tmp_path / "nan")
    crew.use(adapters["kept"])
    alone.use(adapters["kept"])
    assert answered(crew) == answered(alone)  # nothing of what was asked before is taken for an answer

    pids = [member.process.pid or 0 for member in crew._members]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(EngineError, match=rf"engine process 2 of 2 \(pid {pids[1]}\) was ended by SIGKILL"):
        answered(crew)
    assert gone(pids)


def files(run: RunDirectory) -> dict[str, bytes]:
    return {str(p.relative_to(run.evaluation)): p.read_bytes() for p in run.evaluation.rglob("samples.jsonl")}


def start(run: RunDirectory, processes: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "distributed_ft.evaluation", str(run.path), "--nproc", str(processes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """Engine processes of an eval driver: forked of its fork server."""
    servers = [c for c in born_of(pid) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return [child for server in servers for child in born_of(server)]


def born_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def answers_of(run: RunDirectory, model: str) -> Callable[[], bool]:
    """Whether the model is being asked."""
    return lambda: any((run.evaluation / model).glob("*/samples.partial.jsonl"))


def until(happens: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not happens():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_a_run_killed_on_two_processes_and_resumed_on_three_has_the_samples_of_one(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    run = make_run({10: adapters["kept"]}, batch_size=2)
    evaluate(run.path)
    expected = files(run)
    assert len(expected) == 5
    shutil.rmtree(run.evaluation)

    process = start(run, 2)
    until(answers_of(run, "base"), process)
    pids = children(process.pid)
    assert len(pids) == 2
    process.kill()
    process.communicate()
    assert gone(pids)

    evaluate(run.path, num_processes=3)
    assert files(run) == expected


def test_several_processes_that_follow_a_training_have_the_samples_of_one(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    run = make_run({10: adapters["kept"]}, batch_size=2)
    evaluate(run.path)
    expected = files(run)
    shutil.rmtree(run.evaluation)
    progress = Progress(schema=1, phase="finished", step=40, total_steps=40, world_size=1, updated="now")
    write_json(run.progress, progress.model_dump(by_alias=True))
    watch(run.path, num_processes=2)
    assert files(run) == expected


@pytest.mark.slow
def test_whatever_dies_at_any_moment_the_samples_are_those_of_one_process(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    steps = dict.fromkeys(range(10, 60, 10), adapters["untrained"]) | {60: adapters["kept"]}
    run = make_run(steps, batch_size=1)
    evaluate(run.path)
    expected = files(run)
    shutil.rmtree(run.evaluation)
    for model, processes, victim in (
        ("base", 2, "child"),
        ("step-00000010", 3, "parent"),
        ("step-00000020", 2, "stop"),
        ("step-00000030", 3, "child"),
        ("step-00000050", 2, "parent"),
    ):
        process = start(run, processes)
        until(answers_of(run, model), process)
        pids = children(process.pid)
        assert len(pids) == processes
        if victim == "child":
            os.kill(pids[-1], signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL if victim == "parent" else signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == {"child": 2, "parent": -9, "stop": 75}[victim], errors
        assert "Traceback" not in errors
        assert "leaked" not in errors  # semaphores
        if victim == "child":
            assert f"engine process {processes} of {processes} (pid {pids[-1]}) was ended by SIGKILL" in errors
        assert gone(pids)
    process = start(run, 3)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert files(run) == expected
