"""One stage of the work on a file in a fresh process: what it costs, and the memory that it takes.

    python -m benchmarks.data_scaling_worker {read,checks,near,audit,prepare,tokenise} ROWS.jsonl OUT

read: parse all rows. checks: the audit's checks one by one, in this process: CPU seconds of each. near: signatures and
clusters. audit, prepare, tokenise: what `dft data audit`, `dft data prepare` and a run do, by all cores.
"""

import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.harness import Measurement, report, timed
from distributed_ft.data.audit import (
    answers,
    balance,
    characters,
    contamination,
    duplicates,
    fairness,
    formats,
    language,
    private,
    run,
    secrets,
)
from distributed_ft.data.audit.of_run import rows_of
from distributed_ft.data.audit.rows import Rows, Table, basics
from distributed_ft.data.audit.run import AuditSettings, Facts, File, judge
from distributed_ft.data.curate import Wanted, curate
from distributed_ft.data.prepare import prepare
from distributed_ft.data.reading import Reading, chunks
from distributed_ft.data.similar import clusters, signatures

_EVERY = 0.2  # seconds between two looks at the memory
SEQ_LEN = 1024


def read(rows: Path, folder: Path) -> Measurement:
    return {"spent": timed(lambda: sum(len(chunk.parse(tolerant=False)[0]) for chunk in chunks(Reading(str(rows)))))[1]}


def checks(rows: Path, folder: Path) -> Measurement:
    """CPU seconds by check, `read` and `judge` among them; `near`, signatures and clusters, is not a linear check."""
    known, settings = contamination.known([], 8), AuditSettings()
    spent: dict[str, float] = defaultdict(float)

    def clocked(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        given = work()
        spent[name] += time.process_time() - begin
        return given

    facts = []
    for load in rows_of(Reading(str(rows)), tolerant=False):
        some = Rows(clocked("read", load))
        clocked("words", partial(getattr, some, "words"))
        facts.append(
            Facts(
                basics=clocked("basics", partial(basics, some)),
                signatures=clocked("near", partial(duplicates.look, some)),
                matches=clocked("contamination", partial(contamination.look, some, known, settings.overlap)),
                formats=clocked("formats", partial(formats.look, some, None)),
                answers=clocked("answers", partial(answers.look, some)),
                characters=clocked("characters", partial(characters.look, some)),
                languages=clocked("language", partial(language.look, some)),
                balance=clocked("balance", partial(balance.look, some)),
                private=clocked("private", partial(private.look, some)),
                secrets=clocked("secrets", partial(secrets.look, some)),
                groups=clocked("fairness", partial(fairness.look, some, None)),
            )
        )
    findings, statistics = clocked("judge", lambda: judge(str(rows), facts, known, settings))
    table, signed = Table(str(rows), [f.basics for f in facts]), [f.signatures for f in facts]
    before = spent["near"]
    clocked("near", lambda: duplicates.repeated(table, signed, settings.near_duplicate))
    spent["judge"] -= spent["near"] - before  # it has done the same
    return {"spent": dict(spent), "findings": [f"{f.id}: {f.count}" for f in findings], "rows": statistics["rows"]}


def near(rows: Path, folder: Path) -> Measurement:
    texts = [f"{e.prompt} {e.answer}" for chunk in chunks(Reading(str(rows))) for e in chunk.parse(tolerant=False)[0]]
    signed, signing = timed(lambda: signatures(texts))
    _, clustering = timed(lambda: clusters(signed, 0.8))
    return {"spent": {key: signing[key] + clustering[key] for key in signing}, "signatures": signing}


def audit(rows: Path, folder: Path) -> Measurement:
    files = [File(str(rows), rows_of(Reading(str(rows)), tolerant=False))]
    return {"spent": timed(lambda: run.audit(files, [], AuditSettings()))[1]}


def curated(rows: Path, folder: Path) -> Measurement:
    wanted = Wanted((Reading(str(rows)),), folder / "curated")
    return {"spent": timed(lambda: curate(wanted, lambda what, done: None))[1]}


def tokenised(rows: Path, folder: Path) -> Measurement:
    # Not above: no audit has torch in its memory, through which each collection of garbage would have to walk.
    from benchmarks.data_worker import BASE, config_of
    from distributed_ft.model.load import load_tokenizer

    config, tokenizer = config_of(rows, SEQ_LEN), load_tokenizer(BASE)
    return {"spent": timed(lambda: prepare(config, tokenizer, folder / "cache"))[1]}


# --- memory --------------------------------------------------------------------------------------------------------


@contextmanager
def memory_peak(of: int) -> Iterator[Callable[[], int]]:
    """Afterwards gives the most bytes that the process and its children held together while the block ran: what they
    share is counted once (Pss), pages of mapped files too. Looked at by another process, five times a second."""
    fork = multiprocessing.get_context("fork")
    peak, done = fork.Value("q", 0), fork.Event()
    watcher = fork.Process(target=_watch, args=(of, peak, done), daemon=True)
    watcher.start()
    try:
        yield lambda: int(peak.value)
    finally:
        done.set()
        watcher.join()


def _watch(of: int, peak: Any, done: Event) -> None:
    while not done.wait(_EVERY):
        peak.value = max(peak.value, sum(map(_held, [of, *(p for p in _children(of) if p != os.getpid())])))


def _children(of: int) -> list[int]:
    with suppress(OSError):
        return [int(p) for task in Path(f"/proc/{of}/task").iterdir() for p in (task / "children").read_text().split()]
    return []


def _held(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


STAGES: dict[str, Callable[[Path, Path], Measurement]] = {
    "read": read,
    "checks": checks,
    "near": near,
    "audit": audit,
    "prepare": curated,
    "tokenise": tokenised,
}


def main() -> None:
    stage, rows, out = STAGES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    with memory_peak(os.getpid()) as peak:
        found = stage(rows, out)
    report(out, {**found, "peak_bytes": peak()})


if __name__ == "__main__":
    main()
