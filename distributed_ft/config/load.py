"""From `run.yaml` and overrides to a frozen `RunConfig`: every problem at once, each with its key, value and remedy."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distributed_ft.config import checks, paths
from distributed_ft.config.document import Document, Key, Problem, dotted, holds, override, read
from distributed_ft.config.explain import explain
from distributed_ft.config.presets import preset_values, with_preset
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError, ConfigError

_DEFAULT_TYPES = {"method": "lora", "strategy": "ddp"}


@dataclass(frozen=True)
class LoadedRun:
    """A run.yaml that holds: `config` has absolute paths, `text` is what the user wrote."""

    config: RunConfig
    source: Path  # the run.yaml, as it was given
    text: str
    preset_values: dict[str, Any]  # dotted key -> the preset's value, whether the user's own key beats it or not
    overrides: tuple[str, ...] = ()


def load(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Read, override, check and resolve a run.yaml.

    Paths in it, and in overrides, are relative to its folder; `runs_dir` is relative to the working directory.

    Raises:
        ConfigError: with a line for each thing that is wrong.
    """
    source = Path(path)
    text, document = read(source)
    malformed = override(document, overrides)
    folder = source.absolute().parent
    config, found = _judged(_completed(document.value), document, folder)
    found.sort(key=lambda problem: document.line(problem.key) or 0)
    if malformed or found or config is None:
        raise ConfigError("\n".join([*malformed, *map(document.render, found)]))
    return LoadedRun(_absolute(config, folder), source, text, preset_values(document.value), tuple(overrides))


def load_resolved(path: str | Path) -> RunConfig:
    """The config of a run directory, from its `config.json`. Raises CheckpointError when that is missing or damaged."""
    try:
        return RunConfig.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CheckpointError(
            f"{path}: not the config of a run: {where}: {first['msg'].lower()}; was it written by another version?"
        ) from None


def with_evaluation(path: str | Path, overrides: Sequence[str]) -> RunConfig:
    """The config of a run directory, from its `config.json`, judged by other settings (`evaluation.few_shot=2`).

    Paths in the overrides are relative to the working directory.

    Raises:
        ConfigError: with a line for each override that is wrong, or that would change what was trained.
        CheckpointError: as `load_resolved`.
    """
    config, folder = load_resolved(path), Path.cwd()
    document = Document(Path(path), json.loads(resolved_json(config)), {})
    malformed = override(document, overrides)
    malformed += [
        f"{dotted(key)}: belongs to the training; of a run that began, only how it is judged (evaluation.…) can change"
        for key in sorted(document.overridden, key=dotted)
        if len(key) < 2 or not _is_judgement(dotted(key))
    ]
    changed, found = _judged(document.value, document, folder)
    found = [problem for problem in found if problem.key[0] == "evaluation"]  # the rest was right when training began
    if malformed or found or changed is None:
        raise ConfigError("\n".join([*malformed, *map(document.render, found)]))
    return config.model_copy(update={"evaluation": _absolute(changed, folder).evaluation})


def resolved_json(config: RunConfig) -> str:
    """The text of `config.json`: every key, nulls kept."""
    return config.model_dump_json(indent=2) + "\n"


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """Each field in which the run directory's config `a` would train another model than `b`.

    `runs_dir` may differ, as a directory may move, and so may how the run is judged.
    """
    before, now = dict(leaves(a.model_dump(mode="json"))), dict(leaves(b.model_dump(mode="json")))
    absent = object()

    def shown(value: object) -> str:
        return "nothing" if value is absent else json.dumps(value, ensure_ascii=False)

    return [
        f"{key}: {shown(before.get(key, absent))} in the run directory, {shown(now.get(key, absent))} now"
        for key in dict.fromkeys([*before, *now])
        if key != "runs_dir" and not _is_judgement(key) and before.get(key, absent) != now.get(key, absent)
    ]


# --- steps ---------------------------------------------------------------------------------------------------------


def _is_judgement(key: str) -> bool:
    """Whether the key is of the evaluation alone; validation losses are the trainer's."""
    return key.startswith("evaluation.") and key != "evaluation.validation_every"


def _judged(tree: dict[str, Any], document: Document, folder: Path) -> tuple[RunConfig | None, list[Problem]]:
    """The config, None when its types are wrong, and everything that is wrong with it."""
    found: list[Problem] = []
    try:
        config = _validated(tree)
    except ValidationError as error:
        found = explain(error, document)
        config = None
    return config, found + _checked(tree, folder, found)


def _completed(value: dict[str, Any]) -> dict[str, Any]:
    """With the preset's values, and the default `type` where a section has keys but no type."""
    tree = with_preset(value)
    for section, default in _DEFAULT_TYPES.items():
        written = tree.get(section)
        if isinstance(written, dict) and "type" not in written:
            tree[section] = {"type": default, **written}
    return tree


def _validated(tree: dict[str, Any]) -> RunConfig:
    # As JSON, because strict mode then takes a list for a tuple and still refuses "16" for a number.
    return RunConfig.model_validate_json(json.dumps(tree))


def _checked(tree: dict[str, Any], folder: Path, known: list[Problem]) -> list[Problem]:
    """Problems among keys and on disk, also when some keys are wrong: without those, and nothing said about them."""
    wrong = {problem.key for problem in known}
    rest = copy.deepcopy(tree)
    for key in wrong:
        _remove(rest, key)
    for _ in range(8):  # a required key that is wrong or missing gets a stand-in, one level deeper each time
        try:
            config = _validated(rest)
            break
        except ValidationError as error:
            for details in error.errors(include_url=False):
                section, inner = _section(rest, details["loc"][:-1])
                last = details["loc"][-1]
                if details["type"] == "missing" and isinstance(inner, dict):
                    inner[last] = {} if last in ("model", "data") else "unknown"
                    wrong.add((*section, last))
                elif details["type"] == "extra_forbidden" and isinstance(inner, dict):
                    inner.pop(last, None)  # of a metric that is wrong, and away by now
    else:
        return []
    return [p for p in checks.problems(config, folder) if not any(_touches(k, wrong) for k in (p.key, *p.also))]


def _remove(tree: Any, key: Key) -> None:
    if isinstance(key[-1], int) or key[-1] == "type":  # one element would renumber the others; no type, no section
        _remove(tree, key[:-1])
        return
    for step in key[:-1]:
        tree = tree[step] if holds(tree, step) else None
    if isinstance(tree, dict):
        tree.pop(key[-1], None)


def _section(tree: Any, loc: tuple[int | str, ...]) -> tuple[Key, Any]:
    """Key and value of where an error is; the tags of unions, which are no keys, are stepped over."""
    key: Key = ()
    for step in loc:
        if holds(tree, step):
            key, tree = (*key, step), tree[step]
    return key, tree


def _touches(key: Key, wrong: set[Key]) -> bool:
    return any(key[: len(w)] == w or w[: len(key)] == key for w in wrong)


def _absolute(config: RunConfig, folder: Path) -> RunConfig:
    tree = config.model_dump(mode="json")
    for key, path in paths.file_paths(config, folder):
        inner: Any = tree
        for step in key[:-1]:
            inner = inner[step]
        inner[key[-1]] = str(paths.resolve(path, folder))
    if not paths.is_hub_id(config.model.base, folder):
        tree["model"]["base"] = str(paths.resolve(config.model.base, folder))
    tree["runs_dir"] = str(paths.runs_dir(config))
    return _validated(tree)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no mapping; a list of plain values is one value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix}[{index}]")
    else:
        yield prefix, value
