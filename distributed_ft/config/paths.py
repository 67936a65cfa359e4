"""Where what a run.yaml names is, and what is wrong with it."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from distributed_ft.config import data_files
from distributed_ft.config.document import Key, Problem
from distributed_ft.config.schema import DataFile, DeepspeedStrategy, HarnessTask, JsonFieldsTask, RunConfig, TaskConfig
from distributed_ft.errors import DataError

# os.path's questions are asked here, not pathlib's: they answer no where pathlib raises (a name that is too long).
ASSETS = Path(__file__).resolve().parent.parent / "assets"
GENERAL = "general"  # the task name of the shipped general suite
_SHIPPED = "shipped:"
_HARNESS_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,99}")
_LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and a suffix may be needed
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def resolve(path: str, folder: Path) -> Path:
    """Absolute path of what run.yaml calls `path`: `shipped:NAME`, `~/…`, or relative to run.yaml's folder."""
    if path.startswith(_SHIPPED):
        return ASSETS / path.removeprefix(_SHIPPED)
    return Path(os.path.abspath(folder / os.path.expanduser(path)))


def runs_dir(config: RunConfig) -> Path:
    """Absolute; relative to the working directory, as it is where the command is given that a run belongs."""
    return Path(os.path.abspath(os.path.expanduser(config.runs_dir)))


def is_hub_id(base: str, folder: Path) -> bool:
    """Whether `model.base` is a hub id: it has the form of one, and no such directory is there."""
    looks_like_path = base.startswith((".", "/", "~", _SHIPPED)) or not _HUB_ID.fullmatch(base)
    return not looks_like_path and not os.path.isdir(resolve(base, folder))


def file_paths(config: RunConfig, folder: Path) -> Iterator[tuple[Key, str]]:
    """Every path of a file (or folder of data) that the config names, by key; words and hub ids are none."""
    for key, path, _ in _data_paths(config, folder):
        yield key, path
    if config.data.audit.json_schema is not None:
        yield ("data", "audit", "schema"), config.data.audit.json_schema
    if isinstance(config.strategy, DeepspeedStrategy):
        yield ("strategy", "config"), config.strategy.config
    for key, task in config.evaluation.entries:
        if isinstance(task, JsonFieldsTask) and task.json_schema is not None:
            yield (*key, "schema"), task.json_schema
    for index, general in enumerate(config.evaluation.general):
        if isinstance(general, str) and general != "shipped" and not is_harness_name(general, folder):
            yield ("evaluation", "general", index), general
    if config.evaluation.generic_text not in (None, "shipped"):
        yield ("evaluation", "generic_text"), config.evaluation.generic_text


def _data_paths(config: RunConfig, folder: Path) -> Iterator[tuple[Key, str, str | None]]:
    """Key, path and split of what is trained, validated and judged on, where it is not on the hub."""
    train, validation = config.data.train, config.data.validation
    entries: list[tuple[Key, str | DataFile]] = [(("data", "train"), train)] if isinstance(train, str) else []
    if not isinstance(train, str):
        entries = [(("data", "train", index), entry) for index, entry in enumerate(train)]
    if isinstance(validation, str | DataFile):
        entries.append((("data", "validation"), validation))
    for key, task in config.evaluation.entries:
        entries.append((key, task))
        if isinstance(task.validation, str | DataFile):
            entries.append(((*key, "validation"), task.validation))
    for key, entry in entries:
        file = entry if isinstance(entry, DataFile) else DataFile(path=entry)
        if not data_files.is_hub_id(file.path, folder):
            yield (*key, "path") if isinstance(entry, DataFile) else key, file.path, file.split


def is_harness_name(entry: str, folder: Path | None = None) -> bool:
    """Whether an entry of `evaluation.general` names a task of lm-evaluation-harness; `folder` where paths are not
    absolute yet, and a file may have such a name."""
    named = bool(_HARNESS_NAME.fullmatch(entry)) and entry != "shipped"
    return named and (folder is None or not os.path.exists(resolve(entry, folder)))


def general_name(entry: str | TaskConfig | HarnessTask) -> str:
    """Task name of an entry of `evaluation.general`: its own, `general` for the shipped suite, else the file's stem."""
    if not isinstance(entry, str):
        return entry.name
    return GENERAL if entry == "shipped" else Path(entry.removeprefix(_SHIPPED)).stem


# --- what must exist -----------------------------------------------------------------------------------------------


def problems(config: RunConfig, folder: Path) -> Iterator[Problem]:
    """What is not there, or cannot be read, of what a config names; `folder` is what its paths are relative to."""
    yield from _runs_dir(config)
    yield from _base(config, folder)
    yield from _files(config, folder)


def _runs_dir(config: RunConfig) -> Iterator[Problem]:
    if len(config.name) > _LONGEST_NAME:
        yield Problem(
            ("name",), f"has {len(config.name)} characters, and at most {_LONGEST_NAME} make a directory name"
        )
        return
    run = runs_dir(config) / config.name
    existing = next(p for p in (run, *run.parents) if os.path.exists(p))
    if not existing.is_dir():
        yield Problem(("runs_dir",), f"{existing}: is a file, and must be a directory")


def _base(config: RunConfig, folder: Path) -> Iterator[Problem]:
    base = config.model.base
    directory = resolve(base, folder)
    if is_hub_id(base, folder):
        beside = _near(directory)
        if beside is not None and os.path.isdir(directory.parent / beside):
            yield Problem(("model", "base"), f"{directory}: no such directory; did you mean {beside}?")
        return
    if not os.path.isdir(directory):
        wrong = (
            "is a file; give the directory it is in" if os.path.exists(directory) else _missing(directory, "directory")
        )
        yield Problem(("model", "base"), f"{directory}: {wrong}")
        return
    lacking = []
    if not (directory / "config.json").is_file():
        lacking.append("config.json")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        lacking.append("tokenizer files (tokenizer.json)")
    if not any(directory.glob("*.safetensors")):
        lacking.append("weights (*.safetensors)")
    if lacking:
        adapter = (directory / "adapter_config.json").is_file()
        remedy = "it holds an adapter; give the base model" if adapter else "save a model there with save_pretrained"
        yield Problem(("model", "base"), f"{directory}: lacks {' and '.join(lacking)}; {remedy}")


def _files(config: RunConfig, folder: Path) -> Iterator[Problem]:
    splits = {key: split for key, _, split in _data_paths(config, folder)}
    for key, text in file_paths(config, folder):
        path = resolve(text, folder)
        if key in splits and (os.path.isdir(path) or (splits[key] is not None and os.path.isfile(path))):
            try:
                data_files.files_of(path, splits[key])
            except DataError as error:
                yield Problem(key, str(error))
        elif os.path.isdir(path):
            yield Problem(key, f"{path}: is a directory, not a file")
        elif not os.path.isfile(path):
            yield Problem(key, f"{path}: {_missing(path, 'file')}")
        elif not os.access(path, os.R_OK):
            yield Problem(key, f"{path}: cannot be read; you lack the permission")
        elif key[-1] == "schema":
            yield from _schema_file(key, path)


def _schema_file(key: Key, path: Path) -> Iterator[Problem]:
    try:
        schema = json.loads(path.read_bytes())
    except ValueError as error:
        yield Problem(key, f"{path}: not valid JSON ({error})")
        return
    if not isinstance(schema, dict):
        yield Problem(key, f"{path}: not a JSON Schema: it must be an object, {{…}}")


def _missing(path: Path, kind: str) -> str:
    """`no such file`, and the name beside it that was probably meant."""
    beside = _near(path)
    return f"no such {kind}" + (f"; did you mean {beside}?" if beside else "")


def _near(path: Path) -> str | None:
    """The name beside `path` that is most like its own."""
    try:
        beside = {p.stem: p.name for p in path.parent.iterdir()} if os.path.isdir(path.parent) else {}
    except OSError:
        beside = {}
    close = difflib.get_close_matches(path.stem, beside, n=1, cutoff=0.7)
    return beside[close[0]] if close else None
