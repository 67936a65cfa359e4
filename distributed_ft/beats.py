"""Where each rank is, for whoever watches the ranks of a node: so that one that fails or stalls can be named.

A launcher names a directory on this node in DFT_BEATS; each rank overwrites one small record in its own file there, at
every step and change of phase. Without that variable nothing here does anything. Torch-free.
"""

import json
import os
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "DFT_BEATS"
_STALL_VARIABLE = "DFT_STALL_SECONDS"
_SIZE = 192  # bytes of a record: always the same, so that a new one covers the old one


@dataclass(frozen=True)
class Beat:
    """A rank's last word. step: completed optimizer steps; phase: as in `records.Progress`; time: Unix seconds."""

    rank: int
    pid: int
    step: int
    phase: str
    time: float


def stall_seconds() -> float:
    """So long may the ranks of a node train without a beat before one of them is said to hold the others up."""
    return float(os.environ.get(_STALL_VARIABLE, "600"))


class Pulse:
    """This rank's record. A beat costs a few microseconds (nothing is flushed to a disk)."""

    def __init__(self, rank: int) -> None:
        self._rank, self._pid = rank, os.getpid()
        folder = os.environ.get(VARIABLE)
        self._file = None if folder is None else os.open(Path(folder) / f"rank-{rank}", os.O_WRONLY | os.O_CREAT, 0o600)

    def beat(self, step: int, phase: str) -> None:
        """Say that this rank is alive, after so many steps, in that phase."""
        if self._file is not None:
            text = json.dumps(asdict(Beat(self._rank, self._pid, step, phase, time.time())))
            os.pwrite(self._file, f"{zlib.crc32(text.encode()):08x}{text:<{_SIZE - 8}}".encode(), 0)

    def close(self) -> None:
        """No beat comes after this."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def note(rank: int, text: str) -> None:
    """Leave word of why this rank fails."""
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        (Path(folder) / f"note-{rank}").write_text(text)


def notes(directory: Path) -> dict[int, str]:
    """The words that ranks left."""
    return {int(path.name.removeprefix("note-")): path.read_text() for path in directory.glob("note-*")}


def count(rank: int, collectives: int) -> None:
    """Say how many collectives this rank has entered so far."""
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        (Path(folder) / f"collectives-{rank}").write_text(f"{collectives}\n")


def collectives(directory: Path) -> dict[int, int]:
    """How many collectives each rank that was asked had entered."""
    said = {path: path.read_text() for path in directory.glob("collectives-*")}
    return {int(p.name.removeprefix("collectives-")): int(text) for p, text in said.items() if text.endswith("\n")}


def read(directory: Path) -> dict[int, Beat]:
    """The last beat of each rank that is in `directory`; a record that is just being replaced is left out."""
    beats = {}
    for path in directory.glob("rank-*"):
        raw = path.read_bytes()
        text = raw[8:].rstrip()
        if raw[:8] == f"{zlib.crc32(text):08x}".encode():
            beat = Beat(**json.loads(text))
            beats[beat.rank] = beat
    return beats
