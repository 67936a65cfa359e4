"""Bad rows are kept aside and counted, and the rest is read; memory does not grow with the file."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_ft.data.reading import BadRow, Reading, chunks, quarantine, read
from distributed_ft.errors import DataError

GOOD = '{"prompt": "a", "completion": "b"}'
ROW = json.dumps({"prompt": "q é", "completion": "a", "category": "c"}, ensure_ascii=False).encode() + b"\n"

# --- bad rows ------------------------------------------------------------------------------------------------------

ONE_BAD_ROW: dict[str, tuple[str, bytes, int, str]] = {  # file, content with a good row on each side, line, reason
    "broken json": ("a.jsonl", b'{"prompt": }', 2, "not valid JSON"),
    "no object": ("a.jsonl", b"3", 2, "not an object"),
    "wrong type": ("a.jsonl", b'{"prompt": 3, "completion": "b"}', 2, "prompt is a number"),
    "latin-1": ("a.jsonl", b'{"prompt": "caf\xe9", "completion": "b"}', 2, "not UTF-8"),
    "utf-16 in between": ("a.jsonl", GOOD.encode("utf-16-le"), 2, "NUL byte"),
    "nul bytes": ("a.jsonl", b"\0\0\0", 2, "NUL byte"),
    "duplicate keys": ("a.jsonl", b'{"prompt": "a", "prompt": "b", "completion": "c"}', 2, "stands twice"),
    "missing column": ("a.jsonl", b'{"prompt": "a"}', 2, "missing column"),
    "half a surrogate": ("a.jsonl", b'{"prompt": "\\ud83d", "completion": "b"}', 2, "surrogate"),
    "another shape": ("a.jsonl", b'{"text": "a"}', 2, "mixed shapes"),
    "deep nesting": ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, 2, "not usable JSON"),
    "fields": ("a.csv", b"a,b,c", 3, "3 fields"),
    "quotation marks": ("a.csv", b'a,"b" c', 3, "not valid CSV"),
    "latin-1 in csv": ("a.csv", b'"caf\xe9\n",b', 3, "not UTF-8"),
    "nul in csv": ("a.csv", b"a\0,b", 3, "NUL character"),
    "no object in json": ("a.json", b"3", 2, "not an object"),
    "duplicate keys in json": ("a.json", b'{"prompt": "a", "prompt": "b", "completion": "c"}', 2, "stands twice"),
}


def around(name: str, bad: bytes) -> bytes:
    good, begin, between, end = GOOD.encode(), b"", b"\n", b"\n"
    if name.endswith("csv"):
        good, begin = b"a,b", b"prompt,completion\n"
    elif name.endswith("json"):
        begin, between, end = b"[", b",\n", b"]"
    return begin + between.join([good, bad, good]) + end


@pytest.mark.parametrize("case", ONE_BAD_ROW)
def test_a_bad_row_is_kept_aside_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    name, content, line, reason = ONE_BAD_ROW[case]
    path = tmp_path / name
    path.write_bytes(around(name, content))
    reading, bad = Reading(str(path)), []
    with pytest.raises(DataError, match=f"{name}:{line}: .*{reason}"):
        list(read(reading))
    examples = list(read(reading, skip_bad=1, bad=bad))
    assert [(e.messages[0].content, e.answer) for e in examples] == [("a", "b")] * 2
    assert [(row.path, row.line) for row in bad] == [(str(path), line)]
    assert reason in bad[0].reason
    quarantine(tmp_path / "q.jsonl", bad)
    assert [BadRow(**json.loads(row)) for row in (tmp_path / "q.jsonl").read_text().splitlines()] == bad


def test_nesting_at_the_edge_of_what_python_can_recurse_is_a_bad_row_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    depths = range(100, 1100, 5)  # from some on they are read but cannot be written, then not even read
    path.write_text("".join(f'{GOOD[:-1]}, "tools": [{{"a": {"[" * n + "]" * n}}}]}}\n' for n in depths))
    bad: list[BadRow] = []
    assert len(list(read(Reading(str(path)), skip_bad=len(depths), bad=bad))) + len(bad) == len(depths)
    assert bad


def test_the_row_that_is_one_too_many_stops_and_shows_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n3\n{GOOD}\n4\n{GOOD}\n5\n{GOOD}\n" + GOOD[:9])
    bad: list[BadRow] = []
    with pytest.raises(
        DataError, match=r"a.jsonl:6: 3 rows .*data.skip_bad \(2\).* first is .*a.jsonl:2: .*not an obj"
    ):
        list(read(Reading(str(path)), skip_bad=2, bad=bad))
    bad.clear()
    assert len(list(read(Reading(str(path)), skip_bad=4, bad=bad))) == 4
    assert [row.line for row in bad] == [2, 4, 6, 8]
    assert "half-written" in bad[3].reason
    assert [row.raw for row in bad] == ["3", "4", "5", GOOD[:9]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD.encode("utf-16")),
        ("a.json", f"[{GOOD},\n{GOOD[:9]}".encode()),
        ("a.csv", b'prompt,completion\na,b\na,"b\na,b\n'),
        ("a.jsonl.gz", gzip.compress(ROW * 600, 0)[:-3000]),
        ("a.parquet", b"PAR1"),
        ("a.jsonl", b"\n"),
    ],
)
def test_what_is_wrong_with_a_file_is_not_skipped(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(read(Reading(str(path)), skip_bad=10**6, bad=[]))


def test_a_chunk_is_parsed_alike_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD.encode(), b"3", *[ROW.strip()] * 7]))
    found = list(chunks(Reading(str(path), keep=("category",)), rows=4))
    assert [len(chunk.items) for chunk in found] == [4, 4, 1]
    for chunk in found:
        there = pickle.loads(pickle.dumps(chunk)).parse(tolerant=True)
        assert there == chunk.parse(tolerant=True)
        assert pickle.loads(pickle.dumps(there)) == there
    assert found[0].parse(tolerant=True)[0][1].columns == {"category": "c"}


# --- memory --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
PEAK = """
import sys
from distributed_ft.data.reading import Reading, read
from support.memory import peak_kib
bad = []
before = peak_kib()
n = sum(1 for _ in read(Reading(sys.argv[1]), int(sys.argv[2]), bad))
print(n, peak_kib() - before, *[row.reason[:40] for row in bad])
"""


def peak(path: Path, skip_bad: int = 0) -> tuple[int, float, str]:
    """Rows read, MiB needed beyond the imports, and why rows were skipped."""
    command = [sys.executable, "-c", PEAK, str(path), str(skip_bad)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows, kilobytes, *reasons = said.split(maxsplit=2)
    return int(rows), int(kilobytes) / 1024, "".join(reasons)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    row = json.dumps({"prompt": "q" * 150, "completion": "a" * 150}).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(row * 1000)  # 35 MB in all
    rows, mebibytes, _ = peak(path)
    assert rows == 100_000
    assert mebibytes < 12


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_of_50_mb_is_named_and_never_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(around(name, b'"' + b"x" * 50_000_000 + (b'","b"' if name == "a.csv" else b'"')))
    line = 3 if name == "a.csv" else 2
    with pytest.raises(DataError, match=rf"{name}:{line}: the row has 48 MiB, and at most 16 are read"):
        list(read(Reading(str(path))))
    rows, mebibytes, reasons = peak(path, skip_bad=1)
    assert (rows, reasons.strip()) == (2, "the row has 48 MiB, and at most 16 are r"[:40])
    assert mebibytes < 45
