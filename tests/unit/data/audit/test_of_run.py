"""The audit of a run: what it is kept by, and by what each source is told."""

import json

import pytest
from support.tasks import config_of

from distributed_ft.config.schema import EvaluationConfig, Source
from distributed_ft.data.audit.of_run import audit_of


@pytest.fixture
def rows():
    return [{"prompt": f"What is {i} times {i}?", "completion": f"It is {i * i}."} for i in range(30)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"findings": []', '{"findings": []}', "null"])
def test_a_damaged_audit_is_made_again(content, rows, make_config, write_rows, tmp_path):
    config = make_config(train=str(write_rows("train.jsonl", rows)), audit={"kind": "style"})
    found = audit_of(config, tmp_path / "audit")
    assert [f["id"] for f in found["findings"]] == ["size"]
    (kept,) = (tmp_path / "audit").iterdir()
    whole = kept.read_bytes()
    kept.write_text(content)
    assert json.dumps(audit_of(config, tmp_path / "audit")) == json.dumps(found)
    assert kept.read_bytes() == whole


def test_each_split_of_a_folder_has_its_own_statistics(rows, make_config, write_rows, tmp_path):
    for name, part in (("train", rows), ("test", rows[:9])):
        write_rows(f"sets/{name}.jsonl", part)
    folder = str(tmp_path / "sets")
    train = (Source(path=folder), Source(path=folder, split="test"), Source(path=folder))
    found = audit_of(make_config(train=train, audit={"kind": "style"}), tmp_path / "audit")
    assert {name: told["rows"] for name, told in found["statistics"].items()} == {
        folder: 30,
        f"{folder} (test)": 9,
        f"{folder} (2)": 30,
    }
    (size,) = (f for f in found["findings"] if f["id"] == "size")
    assert size["count"] == 69


def test_a_training_row_among_a_tasks_validation_rows_is_contamination(rows, make_config, write_rows, tmp_path):
    train, test = (
        str(write_rows("train.jsonl", rows)),
        str(write_rows("test.jsonl", [{"prompt": "a?", "completion": "b"}])),
    )
    by = str(
        write_rows("by.jsonl", [rows[4], {"prompt": "What is a dozen times a score?", "completion": "It is 240."}])
    )
    task = config_of(name="squares", path=test, validation=by)
    config = make_config(train=train, audit={"kind": "style"})
    config = config.model_copy(update={"evaluation": EvaluationConfig(tasks=(task,), general=())})
    found = {f["id"]: f for f in audit_of(config, tmp_path / "audit")["findings"]}
    assert found["contamination.squares.validation"]["severity"] == "error"
    assert found["contamination.squares.validation"]["rows"] == [5]
    assert "contamination.squares" not in found
