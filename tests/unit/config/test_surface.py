"""The keys of run.yaml are a contract: a change to one is seen here first."""

from pathlib import Path

import jsonschema
import pytest

from distributed_ft.config.document import read
from distributed_ft.config.explain import surface
from distributed_ft.config.schema import json_schema

SNAPSHOT = Path(__file__).parent / "surface.txt"
CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_keys_and_their_defaults_are_those_of_the_snapshot() -> None:
    found = [
        f"{key} (required)" if info.is_required() else f"{key} = {info.get_default()!r}" for key, info in surface()
    ]
    assert found == SNAPSHOT.read_text().splitlines(), (
        f"the keys of run.yaml changed. Where that is meant, write it to CHANGELOG.md and {SNAPSHOT.name}, "
        f"which would be:\n" + "\n".join(found)
    )


def test_the_json_schema_is_one_and_requires_what_has_no_default() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name", "model", "data"]
    assert schema["$defs"]["ModelConfig"]["required"] == ["base"]
    assert schema["$defs"]["DataConfig"]["required"] == ["train"]
    assert schema["$defs"]["OptimConfig"]["properties"]["lr"]["description"] == "Peak learning rate."
    assert "schema" in schema["$defs"]["JsonFieldsTask"]["properties"]


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "cluster.yaml"}), ids=lambda p: p.name)
def test_every_shipped_recipe_satisfies_the_json_schema(path: Path) -> None:
    jsonschema.validate(read(path)[1].value, json_schema())


def test_the_json_schema_knows_the_keys_of_each_metric() -> None:
    def fits(*tasks: object) -> bool:
        run = {"name": "x", "model": {"base": "b"}, "data": {"train": "t"}, "evaluation": {"tasks": list(tasks)}}
        suites = {**run, "evaluation": {"general": ["shipped", *tasks]}}
        validator = jsonschema.Draft202012Validator(json_schema())
        assert validator.is_valid(run) == validator.is_valid(suites)
        return validator.is_valid(run)

    task = {"name": "t", "path": "p"}
    assert fits(task, {**task, "metric": "exact_match"}, {**task, "metric": "numeric", "tolerance": 0.1})
    assert not fits({**task, "tolerance": 0.1})
    assert not fits({**task, "metric": "bleu", "tolerance": 0.1})
    assert not fits({**task, "metric": "f1"})


def test_an_editor_sees_a_misspelt_key() -> None:
    run = {"name": "x", "model": {"base": "b"}, "data": {"train": "t"}, "method": {"rnak": 8}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(run, json_schema())
