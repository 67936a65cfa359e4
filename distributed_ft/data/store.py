"""Tokenised rows on disk, memory-mapped: what `prepare` writes once and every rank opens.

```
<cache>/<key>/manifest.json     written last in a hidden sibling, which is then renamed: it exists, so it is complete
              report.json       what was read, cut and dropped
              train-0/ …        one store a source        validation/
                tokens.npy      int32   [tokens]
                supervised.npy  bool    [tokens]
                offsets.npy     int64   [rows + 1]        row i is tokens[offsets[i]:offsets[i + 1]]
                ids.npy         uint8   UTF-8 of all row ids        id_offsets.npy  int64 [rows + 1]
```
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_ft.artifacts import read_json, sha256_of, write_json
from distributed_ft.errors import CheckpointError, DataError
from distributed_ft.records import SCHEMA, FileEntry

IntArray = npt.NDArray[np.int64]
_ARRAYS = ("tokens", "supervised", "offsets", "ids", "id_offsets")
_AGAIN = "run the command again without this run's data/ folder: the data is then prepared anew"


class TokenStore:
    """The rows of one source; arrays are memory-mapped, so opening costs nothing and ranks of a host share pages."""

    def __init__(self, directory: Path, digest: str) -> None:
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self.directory = directory
        self.digest = digest  # sha256 over the content of all arrays
        self.offsets: IntArray = np.array(arrays["offsets"])
        self.lengths: IntArray = np.diff(self.offsets)  # tokens of each row
        self._tokens, self._supervised = arrays["tokens"], arrays["supervised"]
        self._ids, self._id_offsets = arrays["ids"], arrays["id_offsets"]

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens and, for each, whether the model shall say it; both [lengths[index]]."""
        row = slice(self.offsets[index], self.offsets[index + 1])
        return self._tokens[row], self._supervised[row]

    @property
    def largest_id(self) -> int:
        """The largest token id in the store."""
        return int(self._tokens.max())

    def id(self, index: int) -> str:
        """The row's id: its own, or `<file stem>:<line>`."""
        return bytes(self._ids[self._id_offsets[index] : self._id_offsets[index + 1]]).decode()


def write_store(directory: Path, rows: Iterable[tuple[str, npt.NDArray[np.int32], npt.NDArray[np.bool_]]]) -> str:
    """Write (id, tokens, supervised) of each row; returns the digest of the content. At least one row."""
    ids, tokens, supervised = [], [], []
    for name, row_tokens, row_supervised in rows:
        ids.append(np.frombuffer(name.encode(), dtype=np.uint8))
        tokens.append(row_tokens)
        supervised.append(row_supervised)
    assert ids, "an empty store"
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": np.concatenate(tokens).astype(np.int32),
        "supervised": np.concatenate(supervised).astype(np.bool_),
        "offsets": np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        "ids": np.concatenate(ids),
        "id_offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
    }
    directory.mkdir(parents=True)
    digest = hashlib.sha256()
    for name in _ARRAYS:
        np.save(directory / f"{name}.npy", arrays[name], allow_pickle=False)
        digest.update(f"{name}:{arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class PreparedData:
    """Everything training needs to know of its data."""

    train: tuple[TokenStore, ...]  # one a source, in the order of data.train
    weights: tuple[float, ...] | None  # of the sources; None: every row once an epoch
    validation: TokenStore | None
    report: dict[str, Any]  # data/report.json
    directory: Path  # of the cache entry

    @property
    def digest(self) -> str:
        """Identity of the data: tokens, masks, row ids and weights."""
        validation = self.validation.digest if self.validation else None
        parts = [[store.digest for store in self.train], self.weights, validation]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write `report.json` and `manifest.json` into a run's data folder; returns the path of the manifest."""
        write_json(folder / "report.json", self.report)
        manifest = folder / "manifest.json"
        directory = str(self.directory.resolve())
        write_json(
            manifest,
            {"schema": SCHEMA, "digest": self.digest, "directory": directory, "weights": self.weights},
        )
        return manifest


def open_prepared(manifest: str | Path) -> PreparedData:
    """What `PreparedData.write` left. Raises DataError when it, or what it points to, is gone or was changed."""
    manifest = Path(manifest)
    try:
        pointer = read_json(manifest)
        directory, weights, digest = Path(pointer["directory"]), pointer["weights"], pointer["digest"]
        report = read_json(manifest.with_name("report.json"))
    except (CheckpointError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: the prepared data cannot be found through it ({error}); {_AGAIN}") from None
    prepared = open_entry(directory, tuple(weights) if weights else None, report)
    if prepared.digest != digest:
        raise DataError(f"{manifest}: it names other data (digest {digest[:12]}…) than {directory} holds; {_AGAIN}")
    return prepared


def open_entry(directory: Path, weights: tuple[float, ...] | None, report: dict[str, Any] | None) -> PreparedData:
    """The stores of a cache entry; `report` None: the entry's own. Raises DataError when files are missing or cut."""
    problem = entry_problem(directory, content=False)
    if problem:
        raise DataError(f"{problem}; {_AGAIN}")
    manifest = read_json(directory / "manifest.json")
    train = tuple(TokenStore(directory / name, digest) for name, digest in manifest["train"].items())
    validation = manifest["validation"]
    return PreparedData(
        train,
        weights,
        TokenStore(directory / "validation", validation) if validation else None,
        read_json(directory / "report.json") if report is None else report,
        directory,
    )


def write_manifest(directory: Path, train: dict[str, str], validation: str | None) -> None:
    """List every file with size and sha256; `train`: name -> digest of each store."""
    files = {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"schema": SCHEMA, "train": train, "validation": validation, "files": files}
    write_json(directory / "manifest.json", manifest)


def entry_problem(directory: Path, content: bool) -> str | None:
    """None if the cache entry is what was written, else what is wrong; `content`: hash the files, not only sizes."""
    try:
        manifest = read_json(directory / "manifest.json")
        files = {name: FileEntry(**entry) for name, entry in manifest["files"].items()}
        stores = [*manifest["train"], *(["validation"] if manifest["validation"] else [])]
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
        return f"{directory}: no complete prepared data here ({error})"
    lacking = [f"{store}/{array}.npy" for store in stores for array in _ARRAYS if f"{store}/{array}.npy" not in files]
    if lacking:
        return f"{directory / 'manifest.json'}: does not list {lacking[0]}"
    for name, entry in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry.size:
            return f"{path}: missing, or not of {entry.size} bytes"
        if content and sha256_of(path) != entry.sha256:
            return f"{path}: changed after it was written (sha256 differs)"
    return None
