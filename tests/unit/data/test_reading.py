"""Every kind of file gives the same examples, and every shape of row its conversation."""

import bz2
import csv
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from distributed_ft.config.schema import DataFile
from distributed_ft.config.tasks import ExactMatchTask, RefusalTask
from distributed_ft.data.reading import Reading, chunks, describe, read, read_examples
from distributed_ft.data.tables import hub_items
from distributed_ft.errors import DataError

PAIRS = [{"prompt": f"Q{i} é", "completion": f'A{i},\n"b"', "category": "c", "note": None} for i in range(7)]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"Q{i}", "weight": None},
            {"role": "assistant", "content": f"A{i}", "weight": i % 2},
        ]
    }
    for i in range(5)
]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(PAIRS)


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(PAIRS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_zst(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(lines(PAIRS))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(lines(PAIRS)),
    "a.ndjson": lambda path: path.write_bytes(b"\xef\xbb\xbf\n" + lines(PAIRS)),
    "a.json": lambda path: path.write_text(json.dumps({"data": PAIRS})),
    "a.csv": lambda path: write_csv(path, ","),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(PAIRS))),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(lines(PAIRS))),
    "a.JSONL.XZ": lambda path: path.write_bytes(lzma.compress(lines(PAIRS))),
    "a.jsonl.zst": write_zst,
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(PAIRS).encode())),
    "a.parquet": lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(PAIRS), path, row_group_size=3),
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(PAIRS), str(path)),
    "a.arrow": write_stream,
    "saved": lambda path: datasets.Dataset.from_list(PAIRS).save_to_disk(str(path), num_shards=2),
    "dict": lambda path: datasets.DatasetDict(
        train=datasets.Dataset.from_list(PAIRS), test=datasets.Dataset.from_list(PAIRS[:1])
    ).save_to_disk(str(path)),
}


@pytest.fixture(autouse=True)
def no_bars() -> Any:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    for rows in (2, 1000):
        found = [e for chunk in chunks(Reading(str(path)), rows) for e in chunk.parse(tolerant=False)[0]]
        assert [(e.messages[0].content, e.answer, e.group) for e in found] == [
            (row["prompt"], row["completion"], "c") for row in PAIRS
        ]
    assert "'prompt', 'completion' rows" in describe(Reading(str(path)))
    if path.is_file():
        asked = read_examples(path)
        assert [e.digest for e in asked] == [e.digest for e in found]
        assert len({e.id for e in asked}) == len(PAIRS)
        assert found[0].id.startswith("a:")


def test_shards_are_read_in_name_order_and_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "clone" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "clone" / "dataset_infos.json").write_text("{}")
    for name, rows in {
        "train-00001-of-2": PAIRS[3:],
        "train-00000-of-2": PAIRS[:3],
        "test-00000-of-1": PAIRS[:1],
    }.items():
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    clone = str(tmp_path / "clone")
    assert [e.messages[0].content for e in read(Reading(clone))] == [row["prompt"] for row in PAIRS]
    assert [e.line for e in read(Reading(clone))] == [1, 2, 3, 1, 2, 3, 4]
    assert len(list(read(Reading(clone, split="test")))) == 1
    assert "Parquet in 2 files" in describe(Reading(clone))
    with pytest.raises(DataError, match="no file of the split 'dev'"):
        next(read(Reading(clone, split="dev")))
    (folder / "._train-00000-of-2.parquet").write_bytes(b"of a Mac")
    (folder / ".train-2.csv").write_text("prompt,completion\n")
    assert len(list(read(Reading(clone)))) == len(PAIRS)
    (folder / "train-2.csv").write_text("prompt,completion\n")
    with pytest.raises(DataError, match="several formats, csv and parquet"):
        next(read(Reading(clone)))


def test_the_split_of_a_saved_dataset_is_chosen_or_named(tmp_path: Path) -> None:
    WRITERS["dict"](tmp_path / "d")
    assert len(list(read(Reading(str(tmp_path / "d"), split="test")))) == 1
    with pytest.raises(DataError, match="no split 'dev'; choose one of test, train"):
        next(read(Reading(str(tmp_path / "d"), split="dev")))


def test_nulls_that_arrow_adds_are_absent_and_weights_are_kept(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    rows = [
        *CHAT,
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c1"},
                {"role": "assistant", "content": "three"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ]
    table = pa.Table.from_pylist([{"tools": None, **row} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    ours, theirs = (list(read(Reading(str(tmp_path / f"a.{kind}")))) for kind in ("jsonl", "parquet"))
    assert [e.digest for e in ours] == [e.digest for e in theirs]
    assert [e.messages[1].trained for e in theirs[:5]] == [False, True, False, True, False]
    asked, called, answered, said = theirs[5].messages
    assert json.loads(called.extras) == {"tool_calls": [call]}
    assert called.content == ""
    assert json.loads(answered.extras) == {"tool_call_id": "c1", "name": "f"}
    assert (asked.extras, said.extras) == ("", "")
    assert json.loads(theirs[5].tools) == rows[5]["tools"]


U, A, S, T = "user", "assistant", "system", "tool"
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, str]]]] = {
    "sharegpt": (
        {},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [(S, "s"), (U, "q"), (A, "a")],
    ),
    "sharegpt of roles, with a system column": (
        {},
        {"system": "s", "conversations": [{"role": "Human", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [(S, "s"), (U, "q"), (A, "a")],
    ),
    "sharegpt with a call": (
        {},
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "f"}]',
        },
        [(U, "q"), (A, ""), (T, "1"), (A, "a")],
    ),
    "sharegpt under another name": (
        {"format": "sharegpt", "columns": {"messages": "dialog"}},
        {"dialog": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [(U, "q"), (A, "a")],
    ),
    "alpaca with history": (
        {},
        {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "s", "text": "all of it"},
        [(S, "s"), (U, "q"), (A, "a"), (U, "i\n\nx"), (A, "o")],
    ),
    "dolly": ({}, {"instruction": "i", "context": "x", "response": "o"}, [(U, "i\n\nx"), (A, "o")]),
    "conversational pairs": (
        {},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [(U, "q"), (A, "a")],
    ),
    "a conversation beside its prompt": (
        {},
        {
            "prompt": "q",
            "prompt_id": "1",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        [(U, "q"), (A, "a")],
    ),
    "content in parts": (
        {},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        [(U, "q!"), (A, "a")],
    ),
    "plain text": ({}, {"text": "once"}, [("text", "once")]),
    "text told by the user": (
        {"format": "text"},
        {"text": "once", "prompt": "x", "completion": "y"},
        [("text", "once")],
    ),
    "mapped text": ({"columns": {"text": "body"}}, {"body": "once", "text": "x"}, [("text", "once")]),
    "mapped pairs": (
        {"columns": {"prompt": "question", "completion": "answer", "context": "passage", "system": "who"}},
        {"question": "q", "answer": "a", "passage": "p", "who": "s", "prompt": "x", "response": None, "messages": []},
        [(S, "s"), (U, "q\n\np"), (A, "a")],
    ),
    "an empty answer": ({}, {"prompt": "q", "completion": " "}, [(U, "q"), (A, " ")]),
}


@pytest.mark.parametrize("case", SHAPES)
def test_every_shape_of_row_becomes_its_conversation(write_rows: Any, case: str) -> None:
    options, row, expected = SHAPES[case]
    (example,) = read(Reading(str(write_rows("a.jsonl", [row])), **options))
    assert [(m.role, m.content) for m in example.messages] == expected


def test_arguments_of_calls_are_objects_however_they_are_written(write_rows: Any) -> None:
    calls = [{"function": {"name": "f", "arguments": given}} for given in ({"x": 1}, '{"x": 1}')]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]} for call in calls
    ]
    first, second = read_examples(write_rows("a.jsonl", rows))
    assert first.digest == second.digest
    assert first.messages[1].for_template()["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_mapped_ids_and_categories_and_kept_columns(write_rows: Any) -> None:
    row = {"prompt": "q", "completion": "a", "key": 7, "label": 3, "region": "north", "age": 5, "none": None}
    reading = Reading(
        str(write_rows("a.jsonl", [row])),
        columns={"id": "key", "category": "label"},
        keep=("region", "age", "none", "x"),
    )
    (example,) = read(reading)
    assert (example.id, example.group, dict(example.columns)) == ("7", "3", {"region": "north", "age": "5"})


def test_a_category_may_be_a_number(write_rows: Any) -> None:
    path = write_rows("a.jsonl", [{"prompt": "q", "completion": "a", "category": 3}])
    assert [e.group for e in read(Reading(str(path)))] == ["3"]


def test_shards_of_two_shapes_name_both_places(write_rows: Any, tmp_path: Path) -> None:
    first = write_rows("s/a.jsonl", [{"prompt": "q", "completion": "a"}])
    second = write_rows("s/b.jsonl", [{"text": "t"}])
    with pytest.raises(DataError, match=rf"{second}:1: mixed shapes: .* but {first}:1 is one of 'prompt'"):
        list(read(Reading(str(tmp_path / "s"))))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"prompt": "qestion", "completion": "answer"},
            r"a.jsonl:1: missing column 'qestion'.*did you mean 'qestion' by",
        ),
        ({"prompt": "question", "completion": "answer", "system": "sytem"}, r"a.jsonl: columns: .*no such column"),
        ({"promt": "question"}, r"a.jsonl: columns: 'promt' is no name to map to; did you mean 'prompt'"),
    ],
)
def test_a_mistyped_column_is_not_an_absent_one(write_rows: Any, columns: dict[Any, str], said: str) -> None:
    path = write_rows("a.jsonl", [{"question": "q", "answer": "a", "system": "s"}])
    with pytest.raises(DataError, match=said):
        list(read(Reading(str(path), columns=columns)))


def test_equal_ids_are_told_apart_by_their_lines(write_rows: Any) -> None:
    row = {"prompt": "q", "completion": "a"}
    path = write_rows(
        "a.jsonl", [{**row, "id": "a:3"}, {**row, "id": "x"}, row, {**row, "id": "x"}, {**row, "id": "a:3"}]
    )
    assert [e.id for e in read(Reading(str(path)))] == ["a:3@1", "x", "a:3", "x@4", "a:3@5"]


# --- the hub -------------------------------------------------------------------------------------------------------


def test_rows_of_the_hub_are_streamed_by_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(PAIRS))  # load_dataset takes a folder for a repository
    found = list(hub_items(str(tmp_path), None))
    assert [number for number, _ in found] == list(range(1, 8))
    assert found[6][1] == {key: value for key, value in PAIRS[6].items() if value is not None}


def test_a_folder_of_the_owners_name_where_the_command_is_given_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some-one").mkdir()
    assert not Reading("some-one/some-data").on_hub, "a path that was mistyped"
    assert Reading.of(DataFile(path="some-one/some-data")).on_hub, "run.yaml was asked in its own folder"
    assert not Reading.of(DataFile(path=str(tmp_path / "some-one" / "some-data"))).on_hub


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("import sys; sys.modules['datasets'] = None", "pip install 'distributed_ft[hub]'"),
        ("", "check the path, the split"),
    ],
)
def test_without_library_or_network_the_hub_is_refused_in_one_line(tmp_path: Path, first: str, said: str) -> None:
    code = f"{first}\nfrom distributed_ft.data.reading import Reading, read\nnext(read(Reading('some-one/some-data')))"
    python_path = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": python_path},
    )
    last = run.stderr.splitlines()[-1]
    assert "DataError: some-one/some-data: no such file here" in last
    assert said in last


UNANSWERED = [
    {"prompt": "q"},
    {"instruction": "q"},
    {"messages": [{"role": "user", "content": "q"}]},
    {"conversations": [{"from": "human", "value": "q"}]},
]


@pytest.mark.parametrize("row", UNANSWERED, ids=lambda row: next(iter(row)))
def test_a_row_of_a_task_may_lack_an_answer_only_where_its_metric_compares_with_none(
    write_rows: Any, row: dict[str, Any]
) -> None:
    path = str(write_rows("a.jsonl", [row]))
    (example,) = read_examples(Reading.of(RefusalTask(name="t", path=path, metric="refusal")))
    assert [(m.role, m.content) for m in example.messages] == [("user", "q"), ("assistant", "")]
    for refusing in (ExactMatchTask(name="t", path=path), DataFile(path=path)):
        with pytest.raises(DataError, match=r"a\.jsonl:1: "):
            read_examples(Reading.of(refusing))


def test_an_answer_of_a_task_may_be_a_number_or_a_boolean(write_rows: Any) -> None:
    rows = [{"prompt": "a", "completion": 2}, {"prompt": "b", "completion": 0.5}, {"prompt": "c", "completion": True}]
    path = str(write_rows("a.jsonl", rows))
    assert [e.answer for e in read_examples(Reading.of(ExactMatchTask(name="t", path=path)))] == ["2", "0.5", "true"]
    with pytest.raises(DataError, match="completion is a number, 2, not text"):
        read_examples(path)
