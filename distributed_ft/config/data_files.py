"""What a data path stands for: a file of which format, a folder of which files, or a data set on the hub.

Only names are looked at, so that `dft check` can say what is wrong with a path on a login node without any library.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distributed_ft.errors import DataError

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]
FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
PACKINGS = (".gz", ".bz2", ".xz", ".zst")  # of the text formats; Parquet and Arrow compress inside
_TEXT = ("jsonl", "json", "csv", "tsv")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
_DATASET, _DATASETS = "state.json", "dataset_dict.json"  # what `datasets.save_to_disk` leaves in a folder
_REMEDY = (
    f"convert it, or name it by its format: {', '.join(FORMATS)}, the text formats also with {', '.join(PACKINGS)}"
)


@dataclass(frozen=True)
class Kind:
    """The format of a file, by its name."""

    format: FileFormat
    packing: str | None  # one of PACKINGS
    stem: str  # its name without the extensions


def kind_of(path: Path) -> Kind:
    """The kind of a data file. Raises DataError when its name tells none."""
    suffix = path.suffix.lower()
    packing = suffix if suffix in PACKINGS else None
    inner = path.with_suffix("") if packing else path
    form = FORMATS.get(inner.suffix.lower())
    if form is None or (packing and form not in _TEXT):
        remedy = "unpack it" if suffix == ".zip" or packing else _REMEDY
        found = "".join(path.suffixes[-2:] if packing else [path.suffix]) or "no extension"
        raise DataError(f"{path}: unknown kind of data file, {found!r}; {remedy}")
    return Kind(form, packing, inner.stem)


def is_hub_id(path: str, folder: Path) -> bool:
    """Whether a data path is `owner/name` on the hub: it has the form of one, and nothing of that name is here.

    A name with a file's extension, or behind a folder that exists, is a path that was mistyped.
    """
    owner = path.partition("/")[0]
    return looks_like_hub_id(path) and not os.path.exists(folder / owner)


def looks_like_hub_id(path: str) -> bool:
    """Whether it has the form of one, `owner/name`, and not a file's extension."""
    is_file = Path(path).suffix.lower() in (*FORMATS, *PACKINGS, ".zip")
    return bool(_HUB_ID.fullmatch(path)) and not is_file


def files_of(path: Path, split: str | None = None) -> list[Path]:
    """The files that a path stands for: itself; of a folder, the shards of a split (default: train) in name order.

    A folder is what `datasets.save_to_disk` wrote, or holds data files (or has them in `data/`, as clones of hub
    repositories do). Raises DataError when there is no such file, or when it is not clear which are meant.
    """
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise DataError(f"{path}: {_missing(path)}")
        if split is not None:
            raise DataError(
                f"{path}: split {split!r} of a single file; name the file of that split, and leave out split"
            )
        return [path]
    if (path / _DATASETS).is_file():
        path = _split_folder(path, split or "train")
        split = None
    if (path / _DATASET).is_file():
        if split is not None:
            raise DataError(f"{path}: one split was saved here, so {split!r} cannot be chosen; leave out split")
        return sorted(path.glob("*.arrow"))
    return _shards(path, split)


def _missing(path: Path) -> str:
    try:
        beside = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    except OSError:
        beside = []
    close = difflib.get_close_matches(path.name, beside, n=1)
    return (
        f"no such file{f'; did you mean {close[0]!r}?' if close else '; check the path (it is relative to run.yaml)'}"
    )


def _split_folder(path: Path, split: str) -> Path:
    splits = sorted(p.name for p in path.iterdir() if (p / _DATASET).is_file())
    if split not in splits:
        raise DataError(
            f"{path}: no split {split!r}; choose one of {', '.join(splits) or 'none: it is empty'} by split"
        )
    return path / split


def _shards(path: Path, split: str | None) -> list[Path]:
    wanted = split or "train"
    places = [place for place in (path, path / "data", path / wanted) if os.path.isdir(place)]
    found = next((files for files in map(_data_files, places) if files), [])
    if not found:
        raise DataError(f"{path}: a directory without data files ({', '.join(FORMATS)}); name a data file in it")
    named = {file: _SPLIT_NAME.match(file.name.lower()) for file in found}
    if split is not None and not any(named.values()) and found[0].parent.name != split:
        raise DataError(f"{path}: no file in it is named by a split, so {split!r} cannot be chosen; leave out split")
    if any(named.values()):
        chosen = [file for file in found if re.match(rf"{re.escape(wanted)}(?![a-z])", file.name.lower())]
        if not chosen:
            names = ", ".join(file.name for file in found[:5])
            raise DataError(f"{path}: no file of the split {wanted!r} (found: {names}); name the file, or set split")
        found = chosen
    kinds = sorted({kind_of(file).format for file in found})
    if len(kinds) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise DataError(
            f"{path}: files of several formats, {' and '.join(kinds)} ({names}); name the one that is meant"
        )
    return found


def _data_files(folder: Path) -> list[Path]:
    """In name order, without hidden ones (`._train.parquet` of a Mac). A .json counts if a split names it: others hold
    settings (config.json, dataset_infos.json)."""
    files = []
    for file in sorted(folder.iterdir()):
        inner = file.with_suffix("") if file.suffix.lower() in PACKINGS else file
        form = FORMATS.get(inner.suffix.lower())
        shown = not file.name.startswith(".")
        if form and shown and file.is_file() and (form != "json" or _SPLIT_NAME.match(file.name.lower())):
            files.append(file)
    return files
