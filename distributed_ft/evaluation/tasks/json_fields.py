"""A generated JSON object against a reference object: equal or not, field by field, valid or not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from distributed_ft.data.examples import Example
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.evaluation.task import Response, Score, reference
from distributed_ft.evaluation.tasks.rule import FreeText


@dataclass(frozen=True)
class JsonFields(FreeText):
    """1 if the answer is JSON and equals the reference object (order of keys aside), else 0.

    Further metrics of every answer: `valid_json` (it parses, as it stands, to an object), `field_accuracy` (share of
    the reference's fields that the answer has with the same value; 0 for invalid JSON), and `schema_valid` where there
    is a schema. Values are compared as JSON: 1 equals 1.0, and neither equals true.
    """

    validator: Validator | None = None
    metric: str = "json_fields"
    version: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        schema = None if self.validator is None else self.validator.schema
        return {"max_new_tokens": self.max_new_tokens, "schema": schema}

    def check(self, rows: Sequence[Example]) -> None:
        """Raises DataError for a reference that is no JSON object, or breaks the schema."""
        for row in rows:
            where = f"{row.path}:{row.line}: the answer of row {row.id!r}"
            expected = _parse(reference(row))
            if not expected:
                raise DataError(
                    f"{where} is no JSON object with fields, {reference(row)[:80]!r}; json_fields needs one"
                )
            if self.validator is not None and not _fits(self.validator, expected):
                raise DataError(f"{where} does not satisfy the task's schema; correct the answer or the schema")

    def score(self, example: Example, response: Response) -> Score:
        expected = _parse(reference(example))
        answer = _parse(response.text)
        assert expected is not None  # checked when the task was made
        further = {"field_accuracy": _field_accuracy(expected, answer), "valid_json": float(answer is not None)}
        if self.validator is not None:
            further["schema_valid"] = float(answer is not None and _fits(self.validator, answer))
        return Score(float(answer is not None and equal(answer, expected)), further)


def json_fields(task: str, max_new_tokens: int, schema: str | None) -> JsonFields:
    """The rule of a task; `schema` is the path of a JSON Schema file. Raises ConfigError for a schema that is none."""
    return JsonFields(max_new_tokens, None if schema is None else _validator(task, schema))


def _fits(validator: Validator, value: Any) -> bool:
    try:
        return validator.is_valid(value)
    except Unresolvable as error:
        raise ConfigError(f"evaluation.tasks[].schema: $ref {error.ref!r} is not in the schema file") from None


def _validator(task: str, path: str) -> Validator:
    key = f"evaluation.tasks[{task}].schema: {path}"
    try:
        schema = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{key}: cannot be read ({error.strerror}); give the path of a JSON Schema file") from None
    except ValueError as error:
        raise ConfigError(f"{key}: not JSON ({error}); give a JSON Schema file") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"{key}: not a JSON Schema (a JSON object is needed, it holds a {type(schema).__name__})")
    validator = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(f"{key}: not a JSON Schema: {error.message} (at {error.json_path})") from None
    return validator(schema, registry=Registry())  # a registry of its own: a $ref never reaches for the network


def _parse(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, or None."""
    try:
        value = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # Python would take NaN and Infinity


def _field_accuracy(expected: dict[str, Any], answer: dict[str, Any] | None) -> float:
    right = [answer is not None and key in answer and equal(answer[key], value) for key, value in expected.items()]
    return sum(right) / len(right)


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: numbers by value, true and false only with themselves, objects without order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)
