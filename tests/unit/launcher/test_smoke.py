"""What `dft smoke` tries a run on."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import make_config

from distributed_ft.config.schema import RunConfig
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import Reading, read
from distributed_ft.evaluation.tasks import build_tasks
from launcher.smoke import thinned


def rows_of(config: RunConfig, source: int = 0) -> list[Example]:
    entry = config.data.train[source]
    path = entry if isinstance(entry, str) else entry.path
    return list(read(Reading(path, keep=("region",))))


def config_of(folder: Path, source: dict[str, Any], **data: Any) -> RunConfig:
    return make_config(folder, folder, folder, data={"train": [source], **data}, evaluation={"general": []})


def test_a_column_mapped_table_with_bad_rows_is_thinned_as_it_is_trained_on(tmp_path: Path) -> None:
    lines = [f"q{i},a{i},{'north' if i % 2 else 'south'}" for i in range(100)]
    (tmp_path / "table.csv").write_text("\n".join(["question,answer,region", *lines, "half a row"]) + "\n")
    columns = {"prompt": "question", "completion": "answer"}
    source = {"path": str(tmp_path / "table.csv"), "columns": columns}
    config = config_of(tmp_path, source, skip_bad=1, audit={"sensitive": "region"})
    rows = rows_of(thinned(config, tmp_path / "smoke"))
    assert [(r.prompt, r.answer) for r in rows] == [(f"q{i}", f"a{i}") for i in range(0, 100, 10)]
    assert rows[0].columns == {"region": "south"}


@pytest.mark.parametrize("validation", [0.05, "by.jsonl"])
def test_validation_rows_of_a_task_are_thinned_and_there_are_still_some(
    tmp_path: Path, validation: float | str
) -> None:
    for name in ("rows", "test", "by"):
        rows = [{"prompt": f"{name} {i}", "completion": "a"} for i in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    by = str(tmp_path / validation) if isinstance(validation, str) else validation
    task = {"name": "t", "path": str(tmp_path / "test.jsonl"), "validation": by}
    source = [{"path": str(tmp_path / "rows.jsonl")}]
    config = make_config(
        tmp_path, tmp_path, tmp_path, data={"train": source}, evaluation={"tasks": [task], "general": []}
    )
    test, validated = build_tasks(thinned(config, tmp_path / "smoke").evaluation)
    assert (len(test.examples()), len(validated.examples())) == ((10, 10) if isinstance(by, str) else (5, 5))


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ROWS = {
    "text": {"text": "Once upon a time."},
    "a turn that is not learned": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "wrong", "weight": 0},
            {"role": "user", "content": "really?"},
            {"role": "assistant", "content": "right"},
        ]
    },
    "tools": {
        "category": "sums",
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "1 + 1"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "name": "add"},
            {"role": "assistant", "content": "2"},
        ],
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_thinned_row_is_the_same_row(name: str, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"id": f"row {i}", **ROWS[name]}) + "\n" for i in range(8)))
    thin = rows_of(thinned(config_of(tmp_path, {"path": str(data)}), tmp_path / "smoke"))
    told = [(r.id, r.group, r.digest) for r in read(Reading(str(data)))]
    assert [(r.id, r.group, r.digest) for r in thin] == told


def test_tasks_and_suites_keep_what_their_metrics_look_into(tmp_path: Path) -> None:
    choices = [{"prompt": f"q{i}", "completion": i % 2, "options": ["yes", "no"]} for i in range(100)]
    labels = [{"prompt": f"q{i}", "completion": "rare" if i == 1 else "common"} for i in range(100)]
    probes = [{"prompt": f"q{i}", "expected": "refuse"} for i in range(100)]
    for name, rows in (("choices", choices), ("labels", labels), ("probes", probes)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("choices", "labels", "probes")
    tasks = [
        {"metric": "multiple_choice", "choices_column": "options"},
        {"metric": "classification"},
        {"metric": "refusal"},
    ]
    named = [{"name": n, "path": str(tmp_path / f"{n}.jsonl"), **t} for n, t in zip(names, tasks, strict=True)]
    evaluation = {"tasks": named[:2], "general": ["shipped", named[2]]}
    data = {"train": [str(tmp_path / "labels.jsonl")]}
    config = make_config(tmp_path, tmp_path, tmp_path, data=data, evaluation=evaluation)
    built = build_tasks(thinned(config, tmp_path / "smoke").evaluation)
    assert [(task.name, task.kind, len(task.examples())) for task in built[:2] + built[3:]] == [
        ("choices", "task", 10),
        ("labels", "task", 10),
        ("probes", "general", 10),
    ]
    assert [task.chance for task in built[:2]] == [0.5, 0.5]
