"""`dft data …`, and what `check` and `train` do about bad data, as a user meets it."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml

from distributed_ft.artifacts import RunDirectory, read_json, read_json_lines
from distributed_ft.config.load import load
from distributed_ft.data.prepare import prepare
from distributed_ft.model.load import load_tokenizer
from launcher.cli import main

Row = dict[str, Any]
RUN: dict[str, Any] = {
    "name": "run",
    "model": {"base": "shipped:base", "dtype": "fp32"},
    "method": {"type": "lora", "rank": 4, "alpha": 8},
    "data": {"train": "train.jsonl", "seq_len": 128},
    "optim": {"lr": 1e-3, "global_batch_size": 2, "micro_batch_size": 2, "max_steps": 1},
    "checkpoint": {"every": 100},
    "evaluation": {"tasks": [{"name": "places", "path": "test.jsonl"}], "general": [], "few_shot": 0},
    "tracking": [],
}
PLACES = ("harbour", "market", "station", "museum", "library", "bridge", "castle", "garden")
SIGHTS = ("a red boat", "two grey cats", "an old clock", "fresh bread", "a tall ladder", "some blue chairs")


def row(number: int) -> Row:
    """A question and its answer; 48 different ones."""
    place, sight = PLACES[number % len(PLACES)], SIGHTS[number // len(PLACES)]
    return {
        "id": f"row-{number}",
        "prompt": f"Walking past the {place} on day {number}, what did we see?",
        "completion": f"Near the {place} we saw {sight} that day.",
    }


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def run_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a run.yaml over sound files, with other keys of `data`; its folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", [row(n) for n in range(40)])
    write(tmp_path / "test.jsonl", [row(n) for n in range(40, 48)])

    def made(**data: Any) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**RUN, "data": {**RUN["data"], **data}}))
        return path

    return made


def contaminate(folder: Path) -> None:
    """Lines 3 and 5 of the training file ask and answer what the test does."""
    rows = [row(n) for n in range(40)]
    rows[2], rows[4] = row(41), row(44)
    write(folder / "train.jsonl", rows)


# --- faults stop, warnings do not ----------------------------------------------------------------------------------


def test_an_audit_names_file_and_lines_of_a_contaminated_file(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contaminate(tmp_path)
    path = str(run_yaml())
    assert main(["data", "audit", path, "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    (fault,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert (fault["id"], fault["rows"], fault["waived"]) == ("contamination.places", [3, 5], False)
    assert fault["path"] == str(tmp_path / "train.jsonl")

    assert main(["data", "audit", path]) == 2
    shown = capsys.readouterr().out
    assert "error: contamination.places · 2 rows" in shown
    assert "lines 3, 5" in shown
    assert "a run on this data is refused" in shown

    assert main(["data", "audit", path, "data.waive=[contamination]", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["waive"] == ["contamination"]
    assert [f["waived"] for f in report["findings"] if f["id"] == "contamination.places"] == [True]


def test_check_and_train_refuse_it_with_the_same_words_and_leave_no_run(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contaminate(tmp_path)
    path = str(run_yaml())
    said = []
    for verb in ("check", "train"):
        assert main([verb, path]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert f"{tmp_path}/train.jsonl:3: contamination.places (lines 3, 5): 2 of " in said[0]
    assert "waive: [contamination.places]" in said[0]
    assert not (tmp_path / "runs" / "run").exists()


def test_warnings_are_told_and_stop_nothing(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train.jsonl", [*(row(n) for n in range(40)), row(7)])
    assert main(["check", str(run_yaml())]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line for line in warnings if "duplicate.exact (line 41): 1 of 41" in line]


def test_raw_files_are_audited_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", [row(n) for n in range(40)])
    assert main(["data", "audit", "raw.jsonl"]) == 0
    write(tmp_path / "raw.jsonl", [*(row(n) for n in range(40)), {**row(41), "completion": " "}])
    capsys.readouterr()
    assert main(["data", "audit", "raw.jsonl"]) == 2
    shown = capsys.readouterr().out
    assert "error: answer.empty · 1 row · raw.jsonl" in shown
    assert "line 41" in shown


def test_control_characters_of_the_data_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = {**row(41), "completion": "Near \x1b[2J\x07 the \u202eharbour.\r\nIt is."}
    write(tmp_path / "raw.jsonl", [*(row(n) for n in range(40)), damaged])
    assert main(["data", "audit", "raw.jsonl"]) == 2
    shown = capsys.readouterr().out
    assert "error: encoding · 1 row" in shown
    assert r"Near \x1b[2J\x07 the \u202eharbour.␍" in shown
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)


@pytest.mark.parametrize(("encoding", "arrow"), [("utf-8", "→"), ("latin-1", r"\u2192"), ("ascii", r"\u2192")])
def test_what_a_terminal_cannot_show_is_written_otherwise(tmp_path: Path, encoding: str, arrow: str) -> None:
    write(tmp_path / "raw.jsonl", [*(row(n) for n in range(40)), {**row(41), "completion": " "}])
    command = [sys.executable, "-m", "launcher", "data", "audit", "raw.jsonl"]
    told = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"what did we see? {arrow}" in done.stdout.decode(encoding)


# --- rows that cannot be read --------------------------------------------------------------------------------------


def test_a_half_written_last_line_is_skipped_counted_and_kept_aside(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "half a ro')
    path = str(run_yaml(skip_bad=2))
    assert main(["data", "audit", path]) == 0
    assert "1 unreadable row passed over (data.skip_bad)" in capsys.readouterr().out
    assert main(["check", path]) == 0
    assert "data.skip_bad 2: 1 unreadable row passed over, kept in " in capsys.readouterr().out
    assert main(["train", path]) == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    report = read_json(run.data / "report.json")
    assert (report["rows_bad"], report["rows_in"], report["rows_used"]) == (1, 40, 40)
    (kept,) = read_json_lines(run.data / "quarantine.jsonl")
    assert (kept["path"], kept["line"], kept["raw"]) == (str(tmp_path / "train.jsonl"), 41, '{"prompt": "half a ro')
    assert len(read_json_lines(run.metrics)) == 1


def test_more_bad_rows_than_may_be_skipped_are_an_error_that_names_the_first(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": 1}\n' * 3)
    assert main(["train", str(run_yaml(skip_bad=2))]) == 2
    message = capsys.readouterr().err
    assert "3 rows cannot be read, more than data.skip_bad (2) lets pass" in message
    assert f"the first is {tmp_path}/train.jsonl:41: " in message
    assert not (tmp_path / "runs" / "run").exists()


# --- prepare and preview -------------------------------------------------------------------------------------------


def test_rows_added_between_two_preparations_move_no_old_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def splits(rows: Sequence[Row]) -> dict[str, str]:
        write(tmp_path / "raw.jsonl", rows)
        assert main(["data", "prepare", "raw.jsonl", "--out", "ready"]) == 0
        files = [tmp_path / "ready" / f"{name}.jsonl" for name in ("train", "validation", "test")]
        return {r["id"]: file.stem for file in files for r in read_json_lines(file)}

    before = splits([row(n) for n in range(30)])
    assert len(before) == 30
    assert set(before.values()) == {"train", "validation", "test"}
    after = splits([row(n) for n in reversed(range(48))])
    assert {name: after[name] for name in before} == before
    assert len(after) == 48


def test_a_preview_marks_what_is_learned(run_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", str(run_yaml()), "-n", "1"]) == 0
    shown = capsys.readouterr().out
    learned = "".join(part.split("]]")[0] for part in shown.split("[[")[1:])
    assert "".join(row(0)["completion"].split()) in "".join(learned.split())
    assert "Walking" not in learned
    assert "Walking" in shown


# --- formats and mixtures ------------------------------------------------------------------------------------------


def test_the_same_rows_in_every_format_give_the_same_tokens(run_yaml: Callable[..., Path], tmp_path: Path) -> None:
    rows = [row(n) for n in range(20)]
    table = pa.Table.from_pylist(rows)
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    named = [{"path": name} for name in ("rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz", "saved")]
    config = load(run_yaml(train=named)).config
    prepared = prepare(config, load_tokenizer(config.model.base), tmp_path / "cache")
    assert [source["rows_used"] for source in prepared.report["sources"]] == [20] * 5
    assert len({store.digest for store in prepared.train}) == 1


def test_tasks_and_validation_are_read_like_training_data(
    run_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"asked": [row(n)["prompt"] for n in (40, 3)], "told": [row(n)["completion"] for n in (40, 3)]})
    pyarrow.parquet.write_table(table, tmp_path / "held_out.parquet")
    columns = {"prompt": "asked", "completion": "told"}
    rows = [{"asked": row(n)["prompt"], "told": row(n)["completion"]} for n in range(41, 47)]
    saved = datasets.DatasetDict({"dev": datasets.Dataset.from_list(rows)})
    saved.save_to_disk(tmp_path / "saved")
    path = str(run_yaml(validation={"path": "saved", "split": "dev", "columns": columns}))
    task = yaml.safe_dump({"name": "places", "path": "held_out.parquet", "columns": columns}, default_flow_style=True)
    given = f"evaluation.tasks=[{task.strip()}]"
    assert main(["data", "audit", path, given, "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    (fault,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert (fault["id"], fault["rows"]) == ("contamination.places", [4])
    assert report["validation"]["rows_used"] == 6
    write(tmp_path / "train.jsonl", [row(n) for n in range(4, 40)])
    assert main(["smoke", path, given]) == 0


def test_plain_text_trains(run_yaml: Callable[..., Path], tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": f"{row(n)['prompt']} {row(n)['completion']}"} for n in range(40)])
    assert main(["train", str(run_yaml())]) == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    (line,) = read_json_lines(run.metrics)
    assert line["tokens"] > 0
    report = read_json(run.data / "report.json")
    assert 0.9 * report["tokens"] <= report["supervised_tokens"] < report["tokens"]  # all but each text's first


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_a_fraction_draws_its_share_of_an_epoch(
    fraction: float, run_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(run_yaml(train=[{"path": "train.jsonl"}, {"path": "general.jsonl", "fraction": fraction}]))
    write(tmp_path / "train.jsonl", [row(n) for n in range(30)])
    write(tmp_path / "general.jsonl", [row(n) for n in range(30, 40)])
    assert main(["data", "audit", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["sources"]
    assert told[0]["rows_per_epoch"] == 30
    assert told[1]["drawn_share"] == pytest.approx(fraction, abs=0.02)
    assert told[1]["fraction"] == fraction
