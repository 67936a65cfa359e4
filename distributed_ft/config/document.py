"""YAML 1.2 text as plain Python values, with the line of every key; and `a.b=c` overrides on top of it.

Why not PyYAML: it reads `1e-4` as a string and `on` as True. Why not ruamel's own constructor: it turns a date into a
`datetime` and `1_000` into 1000, which YAML 1.2's core schema does not. So ruamel composes the nodes, and the few
scalar rules of the core schema (yaml.org/spec/1.2.2, section 10.3) are spelled out here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from distributed_ft.errors import ConfigError

Key = tuple[str | int, ...]  # ("data", "train", 0, "path")

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_PLAIN_TAGS = ("bool", "int", "float", "null", "timestamp", "value", "merge")
_STEP = re.compile(r"([^.\[\]=\s]+)((?:\[\d+\])*)")


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value of one key, in words with a remedy; `also` are other keys that it depends on."""

    key: Key
    message: str
    also: tuple[Key, ...] = ()


@dataclass
class Document:
    """A mapping as the user wrote it. `lines` counts from 1; keys that an override set are in `overridden`."""

    source: Path
    value: dict[str, Any]
    lines: dict[Key, int]
    overridden: set[Key] = field(default_factory=set)

    def place(self, key: Key) -> str:
        """What goes before a message: `run.yaml:12: ` of the key or the nearest key above it; `` for an override."""
        line = self.line(key)
        if line is None:
            return ""
        return f"{self.source}:{line}: " if line else f"{self.source}: "

    def line(self, key: Key) -> int | None:
        """Line of the key, or of the nearest key above it; 0 when the file has none of them; None for an override."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.overridden:
                return None
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return 0

    def render(self, problem: Problem) -> str:
        """`run.yaml:12: method.rnak: unknown key; did you mean 'rank'?`."""
        return f"{self.place(problem.key)}{dotted(problem.key)}: {problem.message}"

    def at(self, key: Key) -> Any:
        """The value that the user gave for `key`; None when there is none."""
        value: Any = self.value
        for step in key:
            if not holds(value, step):
                return None
            value = value[step]
        return value


def holds(value: Any, step: str | int) -> bool:
    """Whether `value[step]` is there: a key of a mapping, or an index of a list."""
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def dotted(key: Key) -> str:
    """`data.train[0].path`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).lstrip(".")


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar under YAML 1.2's core schema; a string if it is nothing else."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    except ValueError:  # Python refuses integers of more than 4300 digits
        pass
    return text


# --- reading -------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[str, Document]:
    """The text of a run.yaml and its document. Raises ConfigError, with the line where there is one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        held = "the run.yaml that it was made from" if (path / "config.json").exists() else "the run.yaml in it"
        raise ConfigError(f"{path}: is a directory; give {held}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8 text"
        ) from None
    return text, parse(text, path)


def parse(text: str, source: Path) -> Document:
    """A YAML mapping. Raises ConfigError for a syntax error, for a key given twice and for any other value."""
    root = _compose(text, f"{source}")
    if root is None:
        raise ConfigError(f"{source}: is empty; `name`, `model.base` and `data.train` are required")
    if not isinstance(root, MappingNode):
        kind = "a list" if isinstance(root, SequenceNode) else "a single value"
        raise ConfigError(f"{source}:{_line(root)}: holds {kind}, not `key: value` lines; start with `name: my-run`")
    reader = _Reader(str(source))
    value = reader.convert(root, ())
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return Document(source, value, reader.lines)


def _compose(text: str, name: str) -> Node | None:
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = " ".join(part for part in (error.context, error.problem) if part)
        remedy = "; indent with spaces, not tabs" if "\\t" in problem else ""
        raise ConfigError(f"{where}: not valid YAML: {problem}{remedy}") from None
    except YAMLError as error:
        line = str(error).splitlines()[0]
        raise ConfigError(f"{name}: not valid YAML: {line}") from None
    return node


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    """Nodes to values; collects the line of every key, and every problem."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Key, int] = {}
        self.problems: list[str] = []
        self._open: list[int] = []  # ids of the nodes being converted: an alias to one of them never ends

    def convert(self, node: Node, key: Key) -> Any:
        if id(node) in self._open:
            return self._problem(node, f"{dotted(key)}: an alias (*name) inside the value that it stands for")
        self._open.append(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, key)
            if isinstance(node, SequenceNode):
                return self._sequence(node, key)
            return self._scalar(node, key)
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, ScalarNode):
                self._problem(name_node, f"{dotted(key) or 'the file'}: a key must be a word, not a list or a mapping")
                continue
            name = str(name_node.value)
            here = (*key, name)
            if name in result:
                first = self.lines[here]
                self._problem(name_node, f"{dotted(here)}: given twice, first on line {first}; remove one of them")
            self.lines[here] = _line(name_node)
            result[name] = self.convert(value_node, here)
        return result

    def _sequence(self, node: SequenceNode, key: Key) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self.lines[*key, index] = _line(item)
            result.append(self.convert(item, (*key, index)))
        return result

    def _scalar(self, node: Node, key: Key) -> Any:
        text, tag = str(node.value), str(node.tag)
        kind = tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            if any("\ud800" <= c <= "\udfff" for c in text):
                return self._problem(node, f"{dotted(key)}: holds half a character (a lone surrogate)")
            return text
        if kind in _PLAIN_TAGS:
            return scalar(text)
        return self._problem(node, f"{dotted(key)}: the tag {tag!r} means nothing here; write a plain value")

    def _problem(self, node: Node, message: str) -> None:
        self.problems.append(f"{self.name}:{_line(node)}: {message}")


# --- overrides -----------------------------------------------------------------------------------------------------


def override(document: Document, settings: Sequence[str]) -> list[str]:
    """Set `optim.lr=1e-4` and the like in the document, in order; returns a message for each that is malformed."""
    problems = []
    for setting in settings:
        try:
            key, value = parse_override(setting)
            _set(document, key, value)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def parse_override(setting: str) -> tuple[Key, Any]:
    """`data.train[0].weight=0.5` -> (("data", "train", 0, "weight"), 0.5). Raises ConfigError when malformed."""
    name, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"{setting!r}: an override is key=value, for example optim.lr=1e-4")
    key: list[str | int] = []
    for part in name.strip().split("."):
        match = _STEP.fullmatch(part)
        if not match:
            raise ConfigError(f"{setting!r}: {name!r} is not a key; write it like optim.lr or data.train[0].weight")
        key.append(match.group(1))
        key.extend(int(index) for index in re.findall(r"\d+", match.group(2)))
    node = _compose(text, f"{setting!r}")
    if node is None:
        raise ConfigError(f"{setting!r}: there is no value after '='; write null for none")
    reader = _Reader(repr(setting))
    value = reader.convert(node, tuple(key))
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return tuple(key), value


def _set(document: Document, key: Key, value: Any) -> None:
    inner: Any = document.value
    for depth, step in enumerate(key):
        here, last = dotted(key[:depth]), depth == len(key) - 1
        if isinstance(step, int):
            if not isinstance(inner, list) or step >= len(inner):
                held = f"a list of {len(inner)}" if isinstance(inner, list) else "no list"
                raise ConfigError(f"{dotted(key)}: there is no {here}[{step}] ({here} is {held})")
        elif not isinstance(inner, dict):
            raise ConfigError(f"{dotted(key)}: {here} is {inner!r}, which has no key {step!r}")
        if last:
            inner[step] = value
        elif isinstance(step, str) and isinstance(key[depth + 1], str) and inner.get(step) is None:
            inner[step] = {}
        inner = inner[step] if isinstance(step, int) else inner.get(step)
    for old in [line for line in document.lines if line[: len(key)] == key]:
        del document.lines[old]  # the file's lines say nothing about the new value
    document.overridden.add(key)
