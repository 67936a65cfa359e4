import json
from pathlib import Path

import pytest

from distributed_ft.config.schema import EvaluationConfig, TaskConfig
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.evaluation.task import Response
from distributed_ft.evaluation.tasks import SHIPPED_GENERAL, build_task, build_tasks, general_task
from distributed_ft.evaluation.tasks.json_fields import equal


def row(identity: str, group: str, request: str, answer: str) -> dict[str, object]:
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": identity, "skill": group, "messages": turns}


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def task_config(path: Path, metric: str = "exact_match", schema: Path | None = None, name: str = "t") -> TaskConfig:
    values = {"name": name, "path": str(path), "metric": metric, "schema": str(schema) if schema else None}
    return TaskConfig.model_validate(values)


@pytest.mark.parametrize(
    ("response", "expected"), [("yes", 1.0), (" yes\n", 1.0), ("Yes", 0.0), ("", 0.0), ("yes.", 0.0)]
)
def test_exact_match_ignores_white_space_at_the_ends_only(tmp_path: Path, response: str, expected: float) -> None:
    task = build_task(task_config(write_rows(tmp_path / "t.jsonl", [row("1", "g", "q", "yes")])))
    assert task.score(task.examples()[0], Response((response,))).value == expected


REFERENCE = {"category": "billing", "priority": 2, "order": None, "reply": True}


@pytest.mark.parametrize(
    ("response", "exact", "fields", "valid", "schema_valid"),
    [
        ('{"category":"billing","priority":2,"order":null,"reply":true}', 1, 1, 1, 1),
        ('{"reply":true, "order":null,\n "priority":2.0,"category":"billing"}', 1, 1, 1, 1),
        ('{"category":"billing","priority":2,"order":null,"reply":1}', 0, 0.75, 1, 1),
        ('{"category":"billing","priority":3,"order":null,"reply":true}', 0, 0.75, 1, 1),
        ('{"category":"billing","priority":2,"order":null}', 0, 0.75, 1, 1),
        ('{"category":"billing","priority":2,"order":null,"reply":true,"more":1}', 0, 1, 1, 1),
        ('{"category":"billing","priority":"2","order":null,"reply":true}', 0, 0.75, 1, 0),
        ('{"category":"billing","priority":2,', 0, 0, 0, 0),
        ('```json\n{"category":"billing"}\n```', 0, 0, 0, 0),
        ('["billing"]', 0, 0, 0, 0),
        ('{"category":NaN}', 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
        ("[" * 100_000, 0, 0, 0, 0),
    ],
)
def test_json_answers_are_scored_whole_by_field_and_by_schema(
    tmp_path: Path, response: str, exact: float, fields: float, valid: float, schema_valid: float
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"properties": {"priority": {"type": "number"}}}))
    rows = write_rows(tmp_path / "t.jsonl", [row("1", "g", "q", json.dumps(REFERENCE))])
    task = build_task(task_config(rows, "json_fields", schema))
    score = task.score(task.examples()[0], Response((response,)))
    assert score.value == exact
    assert score.further == {"field_accuracy": fields, "valid_json": valid, "schema_valid": schema_valid}


def test_json_equality_is_not_pythons() -> None:
    assert equal([1, {"a": 1.0}], [1.0, {"a": 1}])
    assert not equal(True, 1)
    assert not equal([False], [0])
    assert not equal({"a": None}, {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{broken", "not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"type": "strin"}', "not a JSON Schema"),
        ('{"properties": {"a": {"pattern": "("}}}', "not a JSON Schema: '\\(' is not a 'regex'"),
        ('{"$ref": "https://example.org/else.json"}', "is not in the schema file"),
        (None, "cannot be read"),
    ],
)
def test_a_schema_that_is_none_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content)
    rows = write_rows(tmp_path / "t.jsonl", [row("1", "g", "q", '{"a": 1}')])
    with pytest.raises(ConfigError, match=says):
        build_task(task_config(rows, "json_fields", schema))


@pytest.mark.parametrize("answer", ["plain", "[1]", "{}"])
def test_a_reference_that_is_no_object_is_refused_with_its_line(tmp_path: Path, answer: str) -> None:
    rows = write_rows(tmp_path / "t.jsonl", [row("1", "g", "q", '{"a": 1}'), row("2", "g", "q2", answer)])
    with pytest.raises(DataError, match=r"t\.jsonl:2.*no JSON object"):
        build_task(task_config(rows, "json_fields"))


def test_a_reference_that_breaks_the_schema_is_refused(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"required": ["b"]}')
    rows = write_rows(tmp_path / "t.jsonl", [row("1", "g", "q", '{"a": 1}')])
    with pytest.raises(DataError, match="does not satisfy"):
        build_task(task_config(rows, "json_fields", schema))


def test_a_schema_is_of_no_use_to_exact_match(tmp_path: Path, files: Path) -> None:
    with pytest.raises(ConfigError, match="json_fields"):
        build_task(task_config(files / "people.jsonl", "exact_match", files / "person.schema.json"))


def test_a_task_without_rows_or_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    write_rows(tmp_path / "unanswered.jsonl", [{"messages": [{"role": "user", "content": "q"}]}])
    for name in ("empty", "unanswered", "missing"):
        with pytest.raises(DataError, match=name):
            build_task(task_config(tmp_path / f"{name}.jsonl"))


def test_the_digest_covers_rows_metric_length_and_schema(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [row("1", "g", "q", '{"a": 1}')])
    same = write_rows(tmp_path / "same.jsonl", [row("1", "g", "q", '{"a": 1}')])
    other = write_rows(tmp_path / "other.jsonl", [row("1", "g", "q", '{"a": 2}')])
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    longer = task_config(one).model_copy(update={"max_new_tokens": 9})
    variants = [
        task_config(one),
        task_config(one, "json_fields"),
        task_config(one, "json_fields", schema),
        longer,
        task_config(other),
    ]
    digests = [build_task(config).digest for config in variants]
    assert len(set(digests)) == len(variants)
    assert build_task(task_config(same)).digest == digests[0]


def test_the_general_suite_is_the_shipped_one_or_a_file(files: Path) -> None:
    suite = general_task(str(files / "skills.jsonl"))
    assert (suite.name, suite.kind, suite.metric) == ("skills", "general", "exact_match")
    assert {example.group for example in suite.examples()} == {"upper", "twice", "last"}
    shipped = general_task("shipped")
    assert (shipped.name, shipped.kind) == ("general", "general")
    assert len(shipped.examples()) == len(SHIPPED_GENERAL.read_text().splitlines())
    assert all(example.group for example in shipped.examples())


def test_two_tasks_of_one_name_are_refused(files: Path) -> None:
    task = task_config(files / "people.jsonl", name="skills")
    with pytest.raises(ConfigError, match="two tasks are named 'skills'"):
        build_tasks(EvaluationConfig(tasks=(task,), general=(str(files / "skills.jsonl"),)))


def test_nothing_to_judge_by_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither tasks nor general"):
        build_tasks(EvaluationConfig(tasks=(), general=()))
