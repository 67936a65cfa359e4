"""Answers that do not have the form of the others: JSON that turns into prose, a fence, other keys, other types.

What the form is comes from the data: where four of five answers to the same kind of request have one form, the rest
drift. Prose has no form to keep to.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from distributed_ft.data.audit.forms import (
    ARRAY,
    EMPTY,
    FENCE,
    NUMBER,
    OBJECT,
    SHORT,
    STRUCTURED,
    TEXT,
    Form,
)  # fmt: skip
from distributed_ft.data.audit.masking import masked
from distributed_ft.data.audit.rows import Codes, Indices, Rows, Table, joined
from distributed_ft.data.audit.words import Hashes
from distributed_ft.data.findings import Finding, Shown
from distributed_ft.errors import ConfigError

MAJORITY = 0.8  # of the answers to one kind of request: the form that they should have
_SAME_KEYS = 0.88  # of JSON answers: what so many have, all should have
_LABEL = 0.01  # of the answers: said so often, it is one of a closed set
_SHOWN = 50  # texts around a break kept of a chunk

Shape = tuple[tuple[str, str], ...]  # keys of a JSON object, ascending, and the kind of value of each


@dataclass(frozen=True, slots=True)
class Formats:
    """Of the answers of a chunk; codes are places in the lists of what there is."""

    names: list[str]
    codes: Codes
    breaks: Codes
    cut: npt.NDArray[np.bool_]
    shapes: list[Shape]
    shape_codes: Codes  # -1: no JSON object
    near: dict[int, str]  # by row: the text around a break
    violations: dict[int, str]  # by row: what the given schema objects to


def look(rows: Rows, schema: Mapping[str, Any] | None = None) -> Formats:
    """The forms of a chunk's answers; `schema`: a JSON Schema that each must satisfy."""
    forms = rows.forms
    names = list(dict.fromkeys(f.name for f in forms))
    code = {name: i for i, name in enumerate(names)}
    shapes: dict[Shape, int] = {}
    code_of: dict[tuple[Any, ...], int] = {}  # by keys and types in their order: mostly the same again
    shape_codes = [-1] * len(forms)
    for i, form in enumerate(forms):
        if isinstance(form.value, dict):
            written = (*form.value, *map(type, form.value.values()))
            if written not in code_of:
                code_of[written] = shapes.setdefault(_shape(form.value), len(shapes))
            shape_codes[i] = code_of[written]
    broken = [i for i, f in enumerate(forms) if f.breaks and not f.cut and f.name not in STRUCTURED][:_SHOWN]
    return Formats(
        names=names,
        codes=np.array([code[f.name] for f in forms], np.int32),
        breaks=np.array([f.breaks for f in forms], np.int32),
        cut=np.array([f.cut for f in forms], np.bool_),
        shapes=list(shapes),
        shape_codes=np.array(shape_codes, np.int32),
        near={i: _around(rows.answers[i], forms[i].breaks) for i in broken},
        violations=_violations(rows, schema) if schema is not None else {},
    )


def _shape(value: dict[str, Any]) -> Shape:
    return tuple(sorted([(key, _type(v)) for key, v in value.items()]))


def _type(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a number"


def _around(text: str, at: int) -> str:
    before = text[max(at - 60, 0) : at]
    return f"{'…' if at > 60 else ''}{before} ⟂ {text[at : at + 60]}{'…' if len(text) > at + 60 else ''}"


def schema_problem(schema: Any) -> str:
    """Why it is no JSON Schema; nothing: it is one."""
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"{error.message} (at {error.json_path})"
    return ""


def _violations(rows: Rows, schema: Mapping[str, Any]) -> dict[int, str]:
    # A registry of its own: a $ref never reaches for the network.
    validator = validator_for(schema, default=jsonschema.Draft202012Validator)(schema, registry=Registry())
    told: dict[str, str] = {}  # answers repeat
    found = {}
    for i, (answer, form) in enumerate(zip(rows.answers, rows.forms, strict=True)):
        if answer not in told:
            told[answer] = _objection(form, validator)
        if told[answer]:
            found[i] = told[answer]
    return found


def _objection(form: Form, validator: Any) -> str:
    if form.name not in (OBJECT, ARRAY) or form.cut:
        return "not JSON"
    try:
        error = next(iter(validator.iter_errors(form.value)), None)
    except Unresolvable as missing:
        raise ConfigError(
            f"data.audit.schema: $ref {missing.ref!r} is not in the schema file; write what it names into it"
        ) from None
    return "" if error is None else f"{error.json_path}: {error.message}"


@dataclass(frozen=True)
class Forms:
    """The forms of all answers of a file."""

    names: list[str]
    codes: Codes  # [n]
    breaks: Codes
    cut: npt.NDArray[np.bool_]
    shapes: list[Shape]
    shape_codes: Codes
    near: dict[int, str]
    violations: dict[int, str]

    def rows_of(self, rows: Indices, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of `rows` have one of these forms."""
        return np.isin(self.codes[rows], [i for i, name in enumerate(self.names) if name in names])

    def usual(self, rows: Indices) -> tuple[str, float]:
        """The commonest form among rows that have an answer, and its share of them."""
        counts = np.bincount(self.codes[rows], minlength=len(self.names))
        counts[[i for i, name in enumerate(self.names) if name == EMPTY]] = 0
        if not counts.sum():
            return EMPTY, 1.0
        return self.names[int(counts.argmax())], float(counts.max() / counts.sum())


def together(looked: Sequence[Formats]) -> Forms:
    """One numbering of forms and shapes for all chunks."""
    names: dict[str, int] = {}
    shapes: dict[Shape, int] = {}
    codes, shape_codes, near, violations, offset = [], [], {}, {}, 0
    for facts in looked:
        codes.append(np.array([names.setdefault(n, len(names)) for n in facts.names], np.int32)[facts.codes])
        renumbered = np.array([*(shapes.setdefault(s, len(shapes)) for s in facts.shapes), -1], np.int32)
        shape_codes.append(renumbered[facts.shape_codes])  # -1 is the last
        near.update({row + offset: text for row, text in facts.near.items()})
        violations.update({row + offset: text for row, text in facts.violations.items()})
        offset += len(facts.codes)
    return Forms(
        list(names),
        joined(codes, np.int32),
        joined([f.breaks for f in looked], np.int32),
        joined([f.cut for f in looked], np.bool_),
        list(shapes),
        joined(shape_codes, np.int32),
        near,
        violations,
    )


def judge(table: Table, forms: Forms) -> list[Finding]:
    drifting: list[int] = []
    expected: list[str] = []
    odd: dict[int, str] = {}
    for name, rows in table.parts:
        usual, share = forms.usual(rows)
        labels = closed_set(table.answers[rows])
        deviant = _deviant(table, forms, rows, usual, labels) if share >= MAJORITY else rows[:0]
        if len(deviant):
            what = "one of few labels" if labels is not None and usual in (SHORT, NUMBER) else usual
            expected.append(f"{share:.0%} of the answers{name} are {what}")
            drifting += deviant.tolist()
        odd |= _odd_shapes(forms, rows)
    odd |= forms.violations
    return [*_drift(table, forms, drifting, expected), *_schema(table, odd)]


def _deviant(table: Table, forms: Forms, rows: Indices, usual: str, labels: Hashes | None) -> Indices:
    """Those of `rows` whose answer is not of the form that it should have."""
    if labels is not None and usual in (SHORT, NUMBER):  # "positive" among "The sentiment is positive, because …"
        said = forms.rows_of(rows, (TEXT,)) & np.isin(table.answers[rows], labels)  # "Positive."
        return rows[~forms.rows_of(rows, (SHORT, NUMBER, EMPTY)) & ~said]
    if usual in STRUCTURED:
        return rows[~forms.rows_of(rows, (usual, EMPTY))]
    if FENCE in usual:  # an explanation around code may stand where it likes; the code must be there
        return rows[~forms.rows_of(rows, [n for n in forms.names if FENCE in n or n == EMPTY])]
    if usual == NUMBER:
        return rows[~forms.rows_of(rows, (NUMBER, SHORT, EMPTY))]
    return rows[:0]


def closed_set(answers: Hashes) -> Hashes | None:
    """The answers that are given again and again, where nearly all are such: the labels of a classification."""
    values, counts = np.unique(answers, return_counts=True)
    often = counts >= max(_LABEL * len(answers), 3)
    if len(values) < 2 or counts[often].sum() < 0.85 * len(answers):
        return None
    return values[often]


def _drift(table: Table, forms: Forms, rows: list[int], expected: list[str]) -> list[Finding]:
    if not rows:
        return []
    how = Counter(forms.names[forms.codes[r]].replace("+", ", then ") for r in rows)
    kinds = ", ".join(f"{name} ({count:,})" for name, count in how.most_common(4))
    starts = sorted(int(forms.breaks[r]) for r in rows)
    middle = starts[len(starts) // 2]
    where = f"; half of them deviate at character {middle:,} or before" if middle else " from the first character on"
    shown = {}
    for row in sorted(rows)[:3]:
        at, near = int(forms.breaks[row]), forms.near.get(row)
        told = table.shown(row)
        shown[row] = Shown(told.row, f"at character {at:,}: {masked(near)}") if near else told
    return table.finding(
        "format.drift",
        rows,
        f"{'; '.join(expected[:3])}; these are {kinds}{where}. A model trained on both writes both; bring the answers "
        "into one form, or remove these rows",
        shown=shown,
    )


def _odd_shapes(forms: Forms, rows: Indices) -> dict[int, str]:
    """By row: how its JSON object differs from those of nearly all others."""
    rows = rows[forms.shape_codes[rows] >= 0]
    codes, counts = np.unique(forms.shape_codes[rows], return_counts=True)
    total = int(counts.sum())
    if total < 20:
        return {}
    of = {int(c): (forms.shapes[c], int(n)) for c, n in zip(codes, counts, strict=True)}
    keys: Counter[str] = Counter()
    sets: Counter[frozenset[str]] = Counter()
    types: dict[str, Counter[str]] = {}
    for shape, count in of.values():
        sets[frozenset(key for key, _ in shape)] += count
        for key, kind in shape:
            keys[key] += count
            types.setdefault(key, Counter())[kind] += count
    needed = [key for key, count in keys.items() if count >= _SAME_KEYS * total]
    common, times = sets.most_common(1)[0]
    allowed = common if times >= _SAME_KEYS * total else frozenset(keys)
    usual = {key: kind for key, seen in types.items() if (kind := _usual_type(seen))}
    odd = {}
    for code, (shape, _) in of.items():
        objections = [f"{key!r} is missing" for key in needed if key not in dict(shape)]
        objections += [f"{key!r} is unknown" for key, _ in shape if key not in allowed]
        objections += [
            f"{key!r} is {kind}, not {usual[key]}" for key, kind in shape if usual.get(key, kind) != kind != "null"
        ]
        if objections:
            odd[code] = "; ".join(objections)
    return {int(r): odd[int(c)] for r in rows if (c := forms.shape_codes[r]) in odd}


def _usual_type(seen: Counter[str]) -> str | None:
    """What a key's values nearly all are, null aside; None: they may be this or that."""
    filled = sum(seen.values()) - seen["null"]
    if not filled:
        return None
    kind, count = max(((k, n) for k, n in seen.items() if k != "null"), key=lambda pair: pair[1])
    return kind if count >= _SAME_KEYS * filled else None


def _schema(table: Table, odd: dict[int, str]) -> list[Finding]:
    why = Counter(odd.values())
    reasons = ", ".join(f"{masked(reason)} ({count:,})" for reason, count in why.most_common(4))
    shown = {r: Shown(table.shown(r).row, f"{masked(odd[r])}: {table.shown(r).text}") for r in sorted(odd)[:3]}
    return table.finding(
        "format.schema",
        odd,
        f"the JSON differs in its keys or types from that of the others, or from the schema: {reasons}; whoever reads "
        "the model's answers will fail on such ones; correct them or remove the rows",
        shown=shown,
    )


def is_prose(name: str) -> bool:
    """Sentences, or sentences and lists."""
    return TEXT in name and FENCE not in name and OBJECT not in name and ARRAY not in name
