"""pydantic's errors about a run.yaml in plain words: the key as the user wrote it, the value, the remedy."""

import difflib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distributed_ft.config import compat
from distributed_ft.config.document import Document, Key, Problem, dotted, holds, scalar
from distributed_ft.config.schema import RunConfig
from distributed_ft.config.tasks import URL

# Keys of type A | B: which branch a value of a JSON type means, and what to write instead of anything else.
_UNIONS: dict[str, tuple[dict[type, str], str]] = {
    "data.train": ({str: "str", list: "tuple"}, "a path or a list of paths, for example [train.jsonl, general.jsonl]"),
    "data.train[]": ({str: "str", dict: "Source"}, "a path or {path: …, weight: …}"),
    "data.validation": (
        {str: "str", int: "constrained", float: "constrained", dict: "DataFile"},
        "a path, a fraction such as 0.1, or {path: …, columns: …}",
    ),
    "evaluation.few_shot": (
        {int: "constrained-int", str: "literal", list: "tuple"},
        "a number of examples, auto, or a list of numbers such as [2, 4, 8]",
    ),
    "evaluation.tasks[].validation": (
        {str: "str", int: "constrained", float: "constrained", dict: "DataFile"},
        "a path, a fraction such as 0.3, or {path: …, columns: …}",
    ),
    "method.target_modules": ({list: "tuple"}, "all-linear or a list of module names, for example [q_proj, v_proj]"),
}

WORD = r"^[^\s]+$"  # the pattern of a value that stands on a command line

_BOUNDS = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}

# What the same thing is called elsewhere.
_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "scheduler": "optim.schedule",
    "batch_size": "optim.micro_batch_size",
    "per_device_train_batch_size": "optim.micro_batch_size",
    "gradient_accumulation_steps": "optim.global_batch_size",
    "num_train_epochs": "optim.epochs",
    "num_epochs": "optim.epochs",
    "adam_epsilon": "optim.eps",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "max_length": "data.seq_len",
    "max_seq_length": "data.seq_len",
    "max_seq_len": "data.seq_len",
    "sequence_length": "data.seq_len",
    "model_name_or_path": "model.base",
    "base_model": "model.base",
    "bf16": "model.dtype",
    "output_dir": "runs_dir",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "evaluation.validation_every",
    "report_to": "tracking",
}


def explain(error: ValidationError, document: Document, root: type[BaseModel] = RunConfig) -> list[Problem]:
    """One problem for each thing that the user has to change; `root` is the model that the document did not fit."""
    found = (_problem(details, document, root) for details in error.errors(include_url=False))
    return list(dict.fromkeys(problem for problem in found if problem))


def surface(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that a run.yaml can have, dotted, with its field; `[]` stands for an index."""
    for name, info in fields(model).items():
        inner = _models(info.annotation)
        if not inner or {str, type(None)}.intersection(_members(info.annotation)):
            yield f"{prefix}{name}", info
        many = "[]" if _is_list(info.annotation) else ""
        keys = (key for section in inner for key in surface(section, f"{prefix}{name}{many}."))
        yield from {(key, repr(info.get_default())): (key, info) for key, info in keys}.values()


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's keys as they are written (`schema`, not `json_schema`)."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


# --- where an error is ---------------------------------------------------------------------------------------------


def _problem(details: ErrorDetails, document: Document, root: type[BaseModel]) -> Problem | None:
    """None for an error of a branch of a union that the user did not mean."""
    key: Key = ()
    value: Any = document.value
    loc = details["loc"]
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        if holds(value, step):
            key, value = (*key, step), value[step]
        elif last and details["type"] == "missing":
            return _missing(key, step, document, root)
        else:  # pydantic's tag of a branch, not a key
            branches, wanted = _UNIONS.get(_pattern(key), ({}, ""))
            if wanted and type(value) not in branches:
                return Problem(key, f"{_show(value)} is neither {wanted.replace(' or ', ' nor ', 1)}")
            if wanted and not str(step).startswith(branches[type(value)]):
                return None
    return Problem(*_words(details, key, value, document, root))


def _pattern(key: Key) -> str:
    return dotted(tuple("[]" if isinstance(step, int) else step for step in key)).replace(".[]", "[]")


def _missing(key: Key, step: str | int, document: Document, root: type[BaseModel]) -> Problem:
    if isinstance(step, int):
        return Problem(key, f"has {step} values, and needs more")
    section = _section(key, document, root)
    description = (fields(section)[step].description or "") if section else ""
    return Problem((*key, step), "is missing" + (f"; {description[0].lower()}{description[1:]}" if description else ""))


def _section(key: Key, document: Document, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the section at `key`; of several, the one that the section's `type` or `metric` names."""
    return next(iter(_branches(key, document, root)), None)


def _branches(key: Key, document: Document, root: type[BaseModel]) -> list[type[BaseModel]]:
    """All models that the section at `key` could have been of, the one that it is of first."""
    models = [root]
    for depth, step in enumerate(key):
        if isinstance(step, int):
            continue
        info = fields(models[0]).get(step)
        models = _models(info.annotation) if info else []
        if not models:
            return []
        in_list = isinstance(next(iter(key[depth + 1 :]), None), int)
        written = document.at(key[: depth + 1 + in_list])
        models.sort(key=lambda model: not _is_meant(model, written))
    return models


def _is_meant(model: type[BaseModel], written: Any) -> bool:
    """Whether a section as it was written is of this model: by its `type` or `metric`, or as the default without."""
    name = _teller(model)
    info = model.model_fields.get(name)
    if info is None:
        return True
    kind = written.get(name) if isinstance(written, dict) else None
    return not info.is_required() if kind is None else kind in _choices(info)


def _teller(model: type[BaseModel]) -> str:
    """The key that says which of several models a section is of."""
    return "metric" if "metric" in model.model_fields else "type"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections in an annotation such as `tuple[str | Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _members(annotation: Any) -> list[Any]:
    return [annotation, *(member for inner in get_args(annotation) for member in _members(inner))]


def _is_list(annotation: Any) -> bool:
    return any(get_origin(member) is tuple for member in _members(annotation))


def _choices(info: FieldInfo | None) -> list[Any]:
    """The words of a Literal field."""
    members = _members(info.annotation) if info else []
    return [word for member in members if get_origin(member) is Literal for word in get_args(member)]


# --- what is wrong -------------------------------------------------------------------------------------------------


def _words(details: ErrorDetails, key: Key, value: Any, document: Document, root: type[BaseModel]) -> tuple[Key, str]:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return key, _unknown_key(key, value, document, root)
        case "union_tag_invalid":
            name = "metric" if "metric" in str(context["discriminator"]) else "type"
            choices = str(context["expected_tags"]).replace("'path', ", "")  # a suite's other form is no choice
            return (*key, name), _unknown_choice((*key, name), value[name], choices)
        case "literal_error" if details["loc"][-1] == "[key]":  # of a mapping with fixed names
            return key, _unknown_choice(key, str(key[-1]), str(context["expected"]))
        case "literal_error" if value is not None:
            return key, _unknown_choice(key, value, str(context["expected"]))
        case "model_type" | "dict_type":
            held = "is empty" if value is None else f"{_show(value)} is not a section of keys"
            section = _section(key, document, root)
            if isinstance(key[-1], int):
                return key, f"{held}; write `- {{name: …, path: …, metric: …}}`"
            example = "type: …" if section and "type" in section.model_fields else "key: value"
            return key, f"{held}; write `{key[-1]}: {{{example}}}`, or remove the line"
    if value is None:
        return key, "null is not a value for it; remove the line to have the default"
    return key, _wrong_value(details["type"], value, context, details["msg"])


def _wrong_value(kind: str, value: Any, context: dict[str, Any], fallback: str) -> str:
    shown = _show(value)
    unquoted = "; write it without quotes" if isinstance(value, str) and _is_number(value) else ""
    match kind:
        case "int_type" | "int_from_float" | "int_parsing":
            whole = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else unquoted
            return f"{shown} is not a whole number{whole}"
        case "float_type" | "float_parsing":
            return f"{shown} is not a number{unquoted}"
        case "bool_type":
            return f"{shown} is neither true nor false"
        case "string_type":
            quoted = f'; write it in quotes: "{shown}"' if isinstance(value, bool | int | float) else ""
            return f"{shown} is not text{quoted}"
        case "tuple_type":
            return f"{shown} is not a list; write [{value}]" if isinstance(value, str) else f"{shown} is not a list"
        case "finite_number":
            return f"{shown} is not a finite number"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{shown} must be {_BOUNDS[kind]} {next(iter(context.values())):.10g}"
        case "too_long":
            return f"has {context['actual_length']} values, and needs {context['max_length']}"
        case "too_short" | "string_too_short":
            return "is empty"
        case "string_pattern_mismatch" if context.get("pattern") == URL:
            return f"{shown} is not an address; write it like http://localhost:8000/v1"
        case "string_pattern_mismatch" if context.get("pattern") == WORD:
            return f"{shown} may hold no white space"
        case "string_pattern_mismatch":
            return f"{shown} may hold only letters, digits, '.', '_' and '-', and begins with a letter or a digit"
    return f"{shown}: {fallback}"


def _unknown_key(key: Key, value: Any, document: Document, root: type[BaseModel]) -> str:
    name = str(key[-1])
    section = _section(key[:-1], document, root)
    known = list(fields(section)) if section else []
    if ":" in name and value is None:
        return f"unknown key; write a space after the colon: {name.replace(':', ': ', 1)}"
    foreign = _belongs_to_another_type(key, value, document, root)
    if foreign:
        return foreign
    if name in _ELSEWHERE and root is RunConfig:
        return f"unknown key; did you mean {_nearest_name(_ELSEWHERE[name], key)!r}?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean {close[0]!r}?"
    for other, _ in surface(root):
        if "[]" not in other and other.rsplit(".", 1)[-1] == name:
            return f"unknown key; did you mean {other!r}?"
    return f"unknown key; {dotted(key[:-1]) or document.source.name} has the keys {', '.join(known)}"


def _nearest_name(other: str, key: Key) -> str:
    """`rank` for `method.rank` within `method`."""
    section = dotted(key[:-1])
    return other.removeprefix(f"{section}.") if section else other


def _belongs_to_another_type(key: Key, value: Any, document: Document, root: type[BaseModel]) -> str | None:
    """`method.rank` under `type: full`, `tolerance` of a task under `metric: exact_match`, and the like."""
    section = key[:-1]
    mine, *others = _branches(section, document, root) or [root]
    teller = _teller(mine)
    theirs = [_choices(model.model_fields[teller])[0] for model in others if key[-1] in fields(model)]
    if root is not RunConfig or not theirs:
        return None
    belongs = f"{_show(value)} belongs to {teller} {' or '.join(map(repr, theirs[:3]))}"
    if document.at((*section, teller)) is None:
        return f"{belongs}; add `{teller}: {theirs[0]}` to {dotted(section)}"
    chosen = _choices(mine.model_fields[teller])[0]
    replacement = f"replace the whole section: '{dotted(section)}={{type: {chosen}}}'"
    return f"{belongs}, not to {chosen!r}; remove it, or {replacement if teller == 'type' else 'correct the metric'}"


def _unknown_choice(key: Key, value: Any, expected: str) -> str:
    reason = compat.reason(_pattern(key), value) if isinstance(value, str) else None
    if reason:
        return f"{_show(value)}: {reason}"
    choices = expected.replace(" or ", ", ").replace("'", "").split(", ")
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{_show(value)} is not a choice; {hint}choices: {', '.join(choices)}"


def _is_number(text: str) -> bool:
    return isinstance(scalar(text), int | float)


def _show(value: Any) -> str:
    """A value as it is written in YAML, shortened to about a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
