"""`dft` as a user meets it: quick, free of torch, one clear message, the right exit code."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config import compat
from distributed_ft.config.load import load, load_resolved, resolved_json
from distributed_ft.errors import CheckpointError, ConfigError, Stopped
from launcher.check import config_lines, config_warnings, count_rows, readable_bytes
from launcher.cli import VERBS
from launcher.demo import conclude
from launcher.guard import guarded
from launcher.smoke import start_command

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
HEAVY = ("torch", "transformers", "peft", "datasets", "deepspeed", "numpy")
RUN = """\
name: x
preset: support
model: {base: ./base}
method: {rank: 4}
data: {train: [{path: train.jsonl, weight: 3}, {path: more.csv, weight: 1}], validation: 0.1}
evaluation: {tasks: [{name: tickets, path: test.json}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run.yaml whose base and data are there, though no model could be loaded from them."""
    (tmp_path / "base").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n\n\n\n')
    (tmp_path / "more.csv").write_text('a,b\n1,"two\nlines"\n')
    (tmp_path / "test.json").write_text("[{}, {}, {}]")
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def dft(*arguments: str, cwd: Path = REPOSITORY, **options: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, check=False, **streams)  # type: ignore[call-overload, no-any-return]


def fastest(command: Callable[[], object]) -> float:
    """Seconds of the best of five: the machine may be busy with something else."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        command()
        times.append(time.perf_counter() - start)
    return min(times)


# --- quick and light -----------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_answers_within_half_a_second() -> None:
    result = dft("--help")
    assert result.returncode == 0
    assert all(f"\n  {verb} " in result.stdout for verb in VERBS)
    assert fastest(lambda: dft("--help")) < 0.5


def test_check_of_the_config_answers_within_a_second(folder: Path) -> None:
    assert fastest(lambda: dft("check", "run.yaml", "--config-only", cwd=folder)) < 1.0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "run.yaml", "--config-only"], ["schema"], ["matrix"], ["train", "gone"]]
)
def test_the_front_door_never_imports_torch(folder: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from launcher.cli import main; main(sys.argv[1:]); "
        f"sys.exit(', '.join(sorted(set({HEAVY!r}) & set(sys.modules))) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = dft(*verb.split(), "--help")
    assert result.returncode == 0
    assert VERBS[verb].help in " ".join(result.stdout.split())


# --- dft check -----------------------------------------------------------------------------------------------------


def test_check_prints_the_resolved_run_and_where_preset_values_come_from(folder: Path) -> None:
    result = dft("check", "run.yaml", "optim.epochs=1", "--config-only", "--nproc", "2", "seed=7", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout
        == f"""\
run            x (run.yaml), seed 7
run directory  {folder}/runs/x (new)
preset         method.rank 4 (yours; preset support: 8)
               method.alpha 16 (preset support)
               optim.lr 0.0002 (preset support)
               optim.epochs 1 (yours; preset support: 2)
model          {folder}/base
               bf16, attention auto, gradient checkpointing none
method         lora: rank 4, alpha 16, dropout 0, on all-linear
train          {folder}/train.jsonl, 38 bytes, 1 row, weight 3
               JSON Lines, 'prompt', 'completion' rows, columns 'prompt', 'completion'
               {folder}/more.csv, 18 bytes, 1 row, weight 1
               CSV, rows of no known shape, columns 'a', 'b'
validation     0.1 of the training rows, held out
tasks          tickets (exact_match): {folder}/test.json, 12 bytes, 3 rows
sequences      2,048 tokens, packed; longer rows: truncate
strategy       ddp: every process holds the whole model
world          2 processes
global batch   16 sequences a step, at most 32,768 tokens (2 forward passes of 4 on each process)
optimizer      adamw, peak rate 0.0002, cosine after 10% warm-up, gradients clipped at norm 1
length         1 epoch
checkpoints    every 500 steps; the newest 3 and the best kept
general suite  shipped
few-shot       4 examples; forgetting budget 0.05
tracking       tensorboard
"""
    )
    assert not (folder / "runs").exists()


def test_check_counts_steps_parameters_and_disk_of_a_real_run(tmp_path: Path) -> None:
    result = dft("check", str(CONFIGS / "lora.yaml"), f"runs_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    printed = dict(line.split("  ", 1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assets = CONFIGS.parent / "distributed_ft" / "assets"
    rows = sum(len((assets / name).read_text().splitlines()) for name in ("tickets/train.jsonl", "general/train.jsonl"))
    drawn = int(1200 / 0.85)  # the tickets once, and as many others as their weights say
    assert printed["rows"].strip() == f"{rows:,}, of which {rows:,} used; {drawn:,} in an epoch"
    assert int(printed["steps"].replace(",", "")) > 50
    assert "trainable of 1," in printed["parameters"]
    assert "free" in printed["disk"]
    assert not (tmp_path / "lora").exists()


def test_check_refuses_a_number_of_processes_that_does_not_fit() -> None:
    result = dft("check", str(CONFIGS / "fsdp_hybrid.yaml"), "--config-only", "--nproc", "3")
    assert result.returncode == 2
    assert "strategy.dp_replicate: 2 does not divide the number of processes, 3" in result.stderr


def test_check_says_in_what_a_run_directory_of_that_name_differs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = folder / "runs" / "x"
    run.mkdir(parents=True)
    (run / "config.json").write_text(resolved_json(load("run.yaml").config))
    assert config_warnings(load("run.yaml").config) == []
    changed = load("run.yaml", ["optim.lr=3e-4"])
    assert config_warnings(changed.config) == [
        f"{run} holds a run of another config: optim.lr: 0.0002 in the run directory, 0.0003 now"
    ]
    assert ("run directory", f"{run} (exists, no checkpoint yet)") in config_lines(changed, 1)


def test_rows_are_counted_as_their_format_says(folder: Path) -> None:
    assert [count_rows(folder / name) for name in ("train.jsonl", "more.csv", "test.json")] == [1, 1, 3]
    (folder / "half.json").write_text('[{"a":')
    assert count_rows(folder / "half.json") is None
    assert count_rows(folder / "base") is None


def test_bytes_are_readable() -> None:
    assert [readable_bytes(n) for n in (0, 999, 1000, 2.5e6, 3e9, 4e15)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "2.5 MB",
        "3.0 GB",
        "4000.0 TB",
    ]


# --- dft schema ----------------------------------------------------------------------------------------------------


def test_schema_is_printed_or_written(folder: Path) -> None:
    printed = json.loads(dft("schema", cwd=folder).stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    result = dft("schema", "--out", "editor/run.schema.json", cwd=folder)
    assert "# yaml-language-server: $schema=editor/run.schema.json" in result.stdout
    assert json.loads((folder / "editor" / "run.schema.json").read_text()) == printed


# --- dft matrix ----------------------------------------------------------------------------------------------------


def test_the_matrix_is_printed_for_people_and_for_programs() -> None:
    shown = dft("matrix").stdout
    assert re.search(r"^method +one process +ddp +fsdp +fsdp hybrid +zero1 +zero2 +zero3$", shown, flags=re.M)
    assert re.search(r"^full +yes +yes +yes +yes ", shown, flags=re.M)
    (note,) = re.findall(r"^flash_attention_2 +no \((\d)\) +yes$", shown, flags=re.M)
    assert f"\n{note}. FlashAttention has no CPU kernel; use attention: auto\n" in shown + "\n"
    tables = json.loads(dft("matrix", "--json").stdout)
    assert tables == compat.tables()
    assert tables["attention"]["flash_attention_2"] == {
        "cpu": "FlashAttention has no CPU kernel; use attention: auto",
        "cuda": "",
    }


# --- what is refused -----------------------------------------------------------------------------------------------

REFUSED = {
    "chekc run.yaml": "dft: error: 'chekc' is not a command; did you mean 'check'?\n",
    "xyz": (
        "dft: error: 'xyz' is not a command; verbs: demo, check, schema, smoke, matrix, data audit, data preview, data "
        "prepare, plan, train, verify-resume, sweep, compare, eval, submit, status, logs, cancel, report, export, "
        "chat\n"
    ),
    "train gone.yaml": "dft: error: gone.yaml: no such file\n",
    "train base": (
        "dft: error: base: not a run directory: it lacks run.yaml or config.json; `dft train run.yaml` makes one\n"
    ),
    "train base seed=1": (
        "dft: error: seed=1: a run directory keeps the config it began with; give a run.yaml and another name\n"
    ),
    "train run.yaml method.rnak=1": "dft: error: method.rnak: unknown key; did you mean 'rank'?\n",
    "smoke run.yaml optim.lr=0": "dft: error: optim.lr: 0 must be greater than 0\n",
    "check run.yaml a seed=x": (
        "dft: error: 2 problems\n"
        "  'a': an override is key=value, for example optim.lr=1e-4\n"
        "  seed: 'x' is not a whole number\n"
    ),
    "eval run.yaml": "dft: error: run.yaml: is a file; give the run directory, for example runs/run\n",
    "eval gone": "dft: error: gone: no such run directory; `dft train run.yaml` makes one\n",
    "eval done": "dft: error: done: no such run directory; did you mean runs/done?\n",
    "eval runs/done --checkpoints 5,x": (
        "dft: error: --checkpoints: '5,x' is none of all, latest, or steps such as 500,1000\n"
    ),
    "train run.yaml --accelerate-config x": (
        "dft: error: --accelerate-config: is for --launcher accelerate, not dft\n"
    ),
    "train run.yaml --launcher accelerate --accelerate-config x": (
        "dft: error: --accelerate-config: x: no such file\n"
    ),
    "train run.yaml strategy.type=launcher": (
        "dft: error: strategy.type: launcher: the strategy is taken from a file of `accelerate launch`; give "
        "--launcher accelerate --accelerate-config FILE, or write strategy: {type: fsdp} (or ddp, deepspeed)\n"
    ),
    "schema --out base": "dft: error: --out base: is a directory; give a file name\n",
    "schema --out run.yaml/x": "dft: error: --out run.yaml: file exists; a file is in the way; choose another place\n",
}


@pytest.mark.parametrize(("command", "said"), REFUSED.items())
def test_a_mistake_gets_one_message_and_exit_code_2(folder: Path, command: str, said: str) -> None:
    (folder / "runs" / "done").mkdir(parents=True)
    (folder / "runs" / "done" / "config.json").write_text("{}")
    (folder / "runs" / "done" / "run.yaml").write_text(RUN)
    result = dft(*command.split(), cwd=folder)
    assert (result.returncode, result.stderr, result.stdout) == (2, said, "")
    assert [p.name for p in (folder / "runs").iterdir()] == ["done"]


@pytest.mark.parametrize("arguments", [["train"], ["train", "a", "--nproc", "0"], ["check", "a", "--nporc", "2"]])
def test_wrong_arguments_are_exit_code_2(arguments: list[str]) -> None:
    result = dft(*arguments)
    assert result.returncode == 2
    assert "usage: dft" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_said_in_a_line() -> None:
    with open("/dev/full", "w") as full:
        result = dft("schema", stdout=full.fileno())
    assert result.returncode == 2
    assert result.stderr == "dft: error: no space left on device; free some space, or choose another runs_dir\n"


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    result = dft("schema", stdout=write)
    os.close(write)
    assert result.stderr == ""


def test_how_a_run_is_judged_is_changed_in_its_directory_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = folder / "runs" / "x"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text(RUN)
    began = resolved_json(load("run.yaml").config)
    (run / "config.json").write_text(began)
    refused = dft("eval", "runs/x", "optim.lr=1", cwd=folder)
    assert (refused.returncode, (run / "config.json").read_text()) == (2, began)
    assert "optim.lr: belongs to the training" in refused.stderr
    judged = dft("eval", "runs/x", "evaluation.few_shot=2", "evaluation.general=[more.csv]", cwd=folder)
    assert judged.returncode == 2  # as test.json holds no rows that could be asked
    assert "test.json:1: missing column" in judged.stderr
    now = load_resolved(run / "config.json")
    assert (now.evaluation.few_shot, now.evaluation.general) == (2, (str(folder / "more.csv"),))
    assert config_warnings(load("run.yaml").config) == []  # so `dft train run.yaml` goes on


def test_a_run_goes_on_with_a_run_yaml_that_judges_it_otherwise_but_not_one_that_trains_otherwise(
    tmp_path: Path,
) -> None:
    begin = ("train", str(CONFIGS / "lora.yaml"), f"runs_dir={tmp_path}", "--prepare-only")
    assert dft(*begin).returncode == 0
    assert dft(*begin, "evaluation.few_shot=1", "evaluation.general=[]").returncode == 0
    refused = dft(*begin, "evaluation.few_shot=3", "evaluation.validation_every=7", "seed=9")
    assert refused.returncode == 2
    assert "seed: 0 in the run directory, 9 now" in refused.stderr
    assert "evaluation.validation_every: null in the run directory, 7 now" in refused.stderr
    assert "few_shot" not in refused.stderr
    judged = load_resolved(tmp_path / "lora" / "config.json").evaluation
    assert (judged.few_shot, judged.general) == (1, ())


def test_the_demo_ends_with_commands_that_work_where_there_is_no_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "my runs" / "demo")
    run.path.mkdir(parents=True)
    conclude(run, 1.0)
    shown = capsys.readouterr().out
    assert f"dft chat '{run.path}' --checkpoint latest\n" in shown
    assert f"tensorboard --logdir '{run.tensorboard}'\n" in shown


def test_smoke_ends_with_the_command_that_it_tried(folder: Path) -> None:
    loaded = load(folder / "run.yaml", ["optim.epochs=1", "data.train=[more.csv]"])
    assert start_command(loaded, 2) == f"dft train {folder}/run.yaml optim.epochs=1 'data.train=[more.csv]' --nproc 2"
    assert start_command(load(folder / "run.yaml"), 1) == f"dft train {folder}/run.yaml"


# --- exit codes ----------------------------------------------------------------------------------------------------


def _raises(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


ENDS: list[tuple[BaseException, int, str]] = [
    (ConfigError("optim.lr: -1"), 2, "dft: error: optim.lr: -1\n"),
    (CheckpointError("damaged:\n  a\n  b"), 2, "dft: error: damaged:\n  a\n  b\n"),
    (
        Stopped("at step 5; continue with: dft train runs/x"),
        75,
        "dft: stopped: at step 5; continue with: dft train runs/x\n",
    ),
    (KeyboardInterrupt(), 130, "\ndft: interrupted\n"),
    (SystemExit(2), 2, ""),
]


@pytest.mark.parametrize(("error", "code", "said"), ENDS, ids=lambda v: type(v).__name__)
def test_each_kind_of_end_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert guarded(_raises(error)) == code
    assert capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)
    with pytest.raises(ConnectionResetError):
        guarded(_raises(ConnectionResetError(errno.ECONNRESET, "reset")))
