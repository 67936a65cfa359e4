"""The folder that `dft data prepare` writes: what may be in it, how it appears whole, how it is made again."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distributed_ft.artifacts import read_json, sha256_of
from distributed_ft.data.splitting import SPLITS, UNKNOWN, Hashes, Placed
from distributed_ft.errors import CheckpointError, ConfigError, DataError

KIND = "prepared-data"
MANIFEST, CARD, LEDGER, REMOVED = "manifest.json", "README.md", "ledger.txt", "removed.jsonl"
NAMES = (*(f"{name}.jsonl" for name in SPLITS), MANIFEST, CARD, LEDGER, REMOVED)
_ABANDONED = 24 * 3600  # seconds after which a half-made folder is the leftover of a killed preparation


def earlier(out: Path) -> dict[str, Any] | None:
    """The manifest of an earlier run into `out`; None when it is not there, or empty.

    Raises ConfigError when something else is there, or what was written has been changed since.
    """
    before = _before(out)
    if before.exists() and not out.exists():  # killed between the two renames of `made_whole`
        os.rename(before, out)
    if out.is_file():
        raise ConfigError(f"--out {out}: is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    other = sorted(path.name for path in out.iterdir() if path.name not in NAMES)
    if other or not (out / MANIFEST).is_file():
        what = f"for example {other[0]!r}" if other else f"and no {MANIFEST}"
        raise ConfigError(f"--out {out}: holds something else, {what}; give a new folder, or move that away")
    try:
        manifest = read_json(out / MANIFEST)
    except CheckpointError as error:
        raise ConfigError(f"--out {error}; give a new folder") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ConfigError(f"--out {out / MANIFEST}: is not that of prepared data; give a new folder")
    for name, entry in manifest["files"].items():
        path = out / name
        if not path.is_file() or sha256_of(path) != entry["sha256"]:
            state = "was changed after it was written" if path.is_file() else "is missing"
            raise ConfigError(f"--out {path}: {state}, and would be written anew; move it away, or give a new folder")
    return manifest


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when the block ends, and is gone when it fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.preparing-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    folder = out.parent / f".{out.name}.preparing-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = _before(out)
    try:
        yield folder
        shutil.rmtree(before, ignore_errors=True)
        if out.exists():
            os.rename(out, before)
        os.rename(folder, out)
    except BaseException:
        if before.exists() and not out.exists():
            os.rename(before, out)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _before(out: Path) -> Path:
    return out.parent / f".{out.name}.before"


# --- the ledger ----------------------------------------------------------------------------------------------------


class Ledger:
    """Which row, by the hash of its content, is in which split: what keeps it there when rows are added."""

    def __init__(self, ids: Hashes, splits: Placed) -> None:
        order = np.argsort(ids)
        self.ids, self.splits = ids[order], splits[order]  # [m], ascending

    def of(self, ids: Hashes) -> Placed:
        """The split of each row, UNKNOWN for those that are new; int8 [n]."""
        if not len(self.ids):
            return np.full(len(ids), UNKNOWN, np.int8)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.splits[at], UNKNOWN).astype(np.int8)

    def with_rows(self, ids: Hashes, placed: Placed) -> "Ledger":
        """And those rows that are in a split. What is gone from the data stays: it may come back."""
        fresh = (placed >= 0) & (self.of(ids) == UNKNOWN)
        return Ledger(np.concatenate([self.ids, ids[fresh]]), np.concatenate([self.splits, placed[fresh]]))

    def write(self, path: Path) -> None:
        """A line a row, by id: `0123456789abcdef train`."""
        with path.open("w", encoding="ascii") as file:
            file.writelines(
                f"{name:016x} {SPLITS[split]}\n"
                for name, split in zip(self.ids.tolist(), self.splits.tolist(), strict=True)
            )


def read_ledger(path: Path | None) -> Ledger:
    """The ledger in a file; None: an empty one. Raises DataError, naming the line."""
    ids, splits = [], []
    number = {name: i for i, name in enumerate(SPLITS)}
    if path is not None:
        with path.open(encoding="ascii") as file:
            for line, text in enumerate(file, 1):
                try:
                    name, split = text.split()
                    ids.append(int(name, 16))
                    splits.append(number[split])
                except (KeyError, ValueError):
                    raise DataError(f"{path}:{line}: not a row and its split, {text.strip()!r}; restore it") from None
    return Ledger(np.array(ids, np.uint64), np.array(splits, np.int8))
