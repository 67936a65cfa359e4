"""Tokenised rows on disk, memory-mapped: what `prepare` writes once and every rank opens.

```
<cache>/<key>/manifest.json     written last in a hidden sibling, which is then renamed: it exists, so it is complete
              report.json       what was read, cut and dropped
              train-0.arrow …   one Arrow IPC file a source        validation.arrow
                                id: string · tokens: list<int32> · supervised: list<uint8>
```

Written batch by batch, so that rows never are in memory all at once. Any Arrow reader opens the files.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distributed_ft.artifacts import read_json, sha256_of, write_atomic, write_json
from distributed_ft.errors import CheckpointError, DataError
from distributed_ft.records import SCHEMA, FileEntry

IntArray = npt.NDArray[np.int64]
StoredRow = tuple[str, Sequence[int], Sequence[bool]]
_COLUMNS = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.int32())), ("supervised", pa.list_(pa.uint8()))])
QUARANTINE = "quarantine.jsonl"  # rows that could not be read, where data.skip_bad lets them pass
_AGAIN = "run the command again without this run's data/ folder: the data is then prepared anew"


@dataclass(frozen=True)
class Rows:
    """n tokenised rows side by side, cheap to hand from process to process."""

    ids: list[str]
    lengths: IntArray  # [n], tokens of each row
    tokens: npt.NDArray[np.int32]  # [sum of lengths]
    supervised: npt.NDArray[np.bool_]  # [sum of lengths], the model shall say it

    @staticmethod
    def of(rows: Iterable[StoredRow]) -> "Rows":
        """From (id, tokens, supervised) of each."""
        ids, tokens, supervised = [], [], []
        for name, row_tokens, row_supervised in rows:
            ids.append(name)
            tokens.append(np.fromiter(row_tokens, np.int32, len(row_tokens)))
            supervised.append(np.frombuffer(bytes(row_supervised), np.bool_))  # five times as fast as of the list
        none = np.zeros(0, np.int32)
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        flat, mask = np.concatenate([none, *tokens]), np.concatenate([none.astype(np.bool_), *supervised])
        return Rows(ids, lengths, flat.astype(np.int32, copy=False), mask)

    def record_batch(self) -> pa.RecordBatch:
        """The same as Arrow; nothing is copied."""
        offsets = pa.array(np.cumsum([0, *self.lengths]), pa.int32())
        lists = [(self.tokens, pa.int32()), (self.supervised.view(np.uint8), pa.uint8())]
        columns = [pa.ListArray.from_arrays(offsets, pa.array(values, kind)) for values, kind in lists]
        return pa.record_batch([pa.array(self.ids, pa.string()), *columns], schema=_COLUMNS)


class TokenStore:
    """The rows of one source; memory-mapped, so opening costs nothing and ranks of a host share pages."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest  # sha256 over the content
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        self._ids = [batch.column("id") for batch in batches]
        self._tokens = [_values(batch.column("tokens")) for batch in batches]
        self._supervised = [_values(batch.column("supervised")).view(np.bool_) for batch in batches]
        self._offsets = [batch.column("tokens").offsets.to_numpy() for batch in batches]
        self._first = np.cumsum([0, *(len(batch) for batch in batches)])  # row that each batch begins with
        self.lengths: IntArray = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens and, for each, whether the model shall say it; both [lengths[index]]."""
        batch, row = self._locate(index)
        begin, end = self._offsets[batch][row], self._offsets[batch][row + 1]
        return self._tokens[batch][begin:end], self._supervised[batch][begin:end]

    @property
    def largest_id(self) -> int:
        """The largest token id in the store."""
        return max(int(tokens.max()) for tokens in self._tokens if len(tokens))

    def targets(self) -> IntArray:
        """Supervised tokens of each row that have a token before them to be predicted from; [rows]."""
        counts = []
        for mask, offsets in zip(self._supervised, self._offsets, strict=True):
            running = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
            counts.append(running[offsets[1:]] - running[offsets[:-1]] - mask[offsets[:-1]])
        return np.concatenate(counts)

    def id(self, index: int) -> str:
        """The row's id: its own, or `<file stem>:<line>`."""
        batch, row = self._locate(index)
        name: str = self._ids[batch][row].as_py()
        return name

    def _locate(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        return batch, index - int(self._first[batch])

    def content(self) -> Iterator[tuple[str, int, Iterable[npt.NDArray[Any]]]]:
        """Name, number of elements and pieces of every array: what the digest is taken of, however it is batched."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        names = [[str(name).encode() for name in column.to_pylist()] for column in self._ids]
        yield "tokens", int(offsets[-1]), self._tokens
        yield "supervised", int(offsets[-1]), self._supervised
        yield "offsets", len(offsets), [offsets]
        joined = [np.frombuffer(b"".join(column), dtype=np.uint8) for column in names]
        ends = np.cumsum([0, *(len(name) for column in names for name in column)], dtype=np.int64)
        yield "ids", int(ends[-1]), joined
        yield "id_offsets", len(ends), [ends]


def _values(column: pa.ListArray) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=True)
    return values


def write_store(path: Path, batches: Iterable[Rows]) -> str:
    """Write rows as they come; returns the digest of the content. Raises OSError; at least one row."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _COLUMNS) as writer:
        for rows in batches:
            if rows.ids:
                writer.write_batch(rows.record_batch())
                num_rows += len(rows.ids)
    assert num_rows, "an empty store"
    digest = hashlib.sha256()
    for name, length, pieces in TokenStore(path, "").content():
        digest.update(f"{name}:({length},)".encode())
        for piece in pieces:
            digest.update(piece.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class PreparedData:
    """Everything training needs to know of its data."""

    train: tuple[TokenStore, ...]  # one a source, in the order of data.train
    weights: tuple[float, ...] | None  # of the sources; None: every row once an epoch
    validation: TokenStore | None
    report: dict[str, Any]  # data/report.json
    directory: Path  # of the cache entry
    fractions: tuple[float | None, ...] | None = None  # of the sources; None in it: seen whole; None: no fractions

    @property
    def digest(self) -> str:
        """Identity of the data: tokens, masks, row ids and how sources are mixed."""
        validation = self.validation.digest if self.validation else None
        parts: list[Any] = [[store.digest for store in self.train], self.weights, validation]
        if self.fractions:
            parts.append(self.fractions)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write `report.json` and `manifest.json` into a run's data folder; returns the path of the manifest."""
        write_json(folder / "report.json", self.report)
        with suppress(FileNotFoundError):
            write_atomic(folder / QUARANTINE, (self.directory / QUARANTINE).read_text())
        manifest = folder / "manifest.json"
        directory = str(self.directory.resolve())
        mixture = {"weights": self.weights, "fractions": self.fractions}
        write_json(manifest, {"schema": SCHEMA, "digest": self.digest, "directory": directory, **mixture})
        return manifest


def open_prepared(manifest: str | Path) -> PreparedData:
    """What `PreparedData.write` left. Raises DataError when it, or what it points to, is gone or was changed."""
    manifest = Path(manifest)
    try:
        pointer = read_json(manifest)
        directory, weights, digest = Path(pointer["directory"]), pointer["weights"], pointer["digest"]
        report, fractions = read_json(manifest.with_name("report.json")), pointer["fractions"]
    except (CheckpointError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: the prepared data cannot be found through it ({error}); {_AGAIN}") from None
    prepared = open_entry(
        directory, tuple(weights) if weights else None, tuple(fractions) if fractions else None, report
    )
    if prepared.digest != digest:
        raise DataError(f"{manifest}: it names other data (digest {digest[:12]}…) than {directory} holds; {_AGAIN}")
    return prepared


def open_entry(
    directory: Path,
    weights: tuple[float, ...] | None,
    fractions: tuple[float | None, ...] | None,
    report: dict[str, Any] | None,
) -> PreparedData:
    """The stores of a cache entry; `report` None: the entry's own. Raises DataError when files are missing or cut."""
    problem = entry_problem(directory, content=False)
    if problem:
        raise DataError(f"{problem}; {_AGAIN}")
    manifest = read_json(directory / "manifest.json")
    train = tuple(TokenStore(directory / f"{name}.arrow", digest) for name, digest in manifest["train"].items())
    validation = manifest["validation"]
    return PreparedData(
        train,
        weights,
        TokenStore(directory / "validation.arrow", validation) if validation else None,
        read_json(directory / "report.json") if report is None else report,
        directory,
        fractions,
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
    lacking = [f"{store}.arrow" for store in stores if f"{store}.arrow" not in files]
    if lacking:
        return f"{directory / 'manifest.json'}: does not list {lacking[0]}"
    for name, entry in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry.size:
            return f"{path}: missing, or not of {entry.size} bytes"
        if content and sha256_of(path) != entry.sha256:
            return f"{path}: changed after it was written (sha256 differs)"
    return None
