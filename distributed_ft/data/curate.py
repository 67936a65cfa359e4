"""Raw data into a folder to train from: cleaned, without duplicates, split by group, with manifest and card.

Two passes over the rows: the first cleans and hashes them (`gather`), the second deals the finished lines to the
splits. Between the two there are only arrays. A second run into the same folder keeps every old row in its split.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distributed_ft.artifacts import sha256_of, write_json
from distributed_ft.data.card import card
from distributed_ft.data.gather import Gathered, Tell, gather, remove
from distributed_ft.data.prepared_folder import (
    CARD,
    KIND,
    LEDGER,
    MANIFEST,
    REMOVED,
    Ledger,
    earlier,
    made_whole,
    read_ledger,
)
from distributed_ft.data.reading import Reading, describe
from distributed_ft.data.similar import NUM_HASHES, Labels, clusters, shared, signatures
from distributed_ft.data.splitting import BRIDGE, DUPLICATE, NEAR, SPLITS, Placed, Ties, groups, place, straddling
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.records import SCHEMA

_DECISIVE = ("split", "group_by", "near", "drop_near")  # arguments that decide which row is in which split
_WHY = {DUPLICATE: "duplicate", NEAR: "near-duplicate", BRIDGE: "tied to two splits"}
_SAMPLE = 2000  # texts that tell what most of them share
_BATCH = 8192  # texts held at once
_GIANT = 0.2  # of the rows in one group: splitting by group has nothing left to split


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    readings: tuple[Reading, ...]
    out: Path
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)  # train, validation, test; they sum to 1
    group_by: str | None = None  # rows with the same value in this column stay together
    stratify: str | None = None  # the column whose shares are reported; None: the row's own category
    min_answer: int = 1  # characters
    near: float = 0.8  # Jaccard similarity from which rows are near-duplicates; 0: not looked at
    drop_near: bool = False  # keep the first of near-duplicates only
    skip_bad: int = 0  # rows that may be unreadable


def curate(wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """Write `wanted.out`, whole or not at all; returns its manifest.

    Raises DataError for the data, ConfigError for the arguments or for a folder that holds something else.
    """
    out = wanted.out
    old = earlier(out)
    arguments = _arguments(wanted)
    _check_same(out, arguments, old)
    _check_inputs(wanted)
    with made_whole(out) as folder:
        found = gather(
            wanted.readings,
            folder,
            group_by=wanted.group_by,
            category=wanted.stratify,
            min_answer=wanted.min_answer,
            skip_bad=wanted.skip_bad,
            tell=tell,
        )
        _check_columns(wanted, found)
        near, common = _near(found, folder, wanted.near, None if old is None else old["shared"], tell)
        ties = Ties(found.hashes("ids"), found.hashes("prompts"), found.hashes("keys"), near)
        group = groups(ties)
        ledger = read_ledger(None if old is None else out / LEDGER)
        placed = place(ties, group, ledger.of(ties.ids), wanted.shares, wanted.drop_near)
        _check_left(found, placed)
        _deal(found, ties, placed, folder, tell)
        ledger = ledger.with_rows(ties.ids, placed)
        ledger.write(folder / LEDGER)
        gone = int((~np.isin(ledger.ids, ties.ids)).sum())
        manifest = _manifest(wanted, arguments, found, ties, group, placed, ledger, common)
        manifest["rows"]["gone"] = gone
        if gone > (0 if old is None else old["rows"].get("gone", 0)):
            manifest["warnings"].append(
                f"{gone:,} rows of an earlier run are not among those read now, and are in no split any more; name all "
                "raw files each time, the old ones as well, if they are wanted"
            )
        manifest["files"] = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())
        }
        text = (out / CARD).read_text(encoding="utf-8") if (out / CARD).is_file() else None
        (folder / CARD).write_text(card(manifest, text), encoding="utf-8")
        write_json(folder / MANIFEST, manifest)
    return manifest


# --- checks --------------------------------------------------------------------------------------------------------


def _arguments(wanted: Wanted) -> dict[str, Any]:
    plain = {k: v for k, v in asdict(wanted).items() if k not in ("readings", "out", "shares")}
    return {"split": list(wanted.shares), **plain}


def _check_same(out: Path, arguments: dict[str, Any], old: dict[str, Any] | None) -> None:
    if old is None:
        return
    for name in _DECISIVE:
        before, now = old["arguments"].get(name), arguments[name]
        if before != now:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option}: {_shown(now)}, but {out} was made with {_shown(before)}, and its rows would move to other "
                "splits; use the same, or give a new --out"
            )


def _check_inputs(wanted: Wanted) -> None:
    out = wanted.out.resolve()
    for file in (file for reading in wanted.readings for file in reading.files()):
        if out in file.resolve().parents:
            raise ConfigError(
                f"--out {wanted.out}: holds {file}, which is to be read, and is written anew; give a new one"
            )
    kept = {name for reading in wanted.readings for name in reading.keep} - {wanted.group_by, wanted.stratify}
    written = {"id": "the hash of the content"} | ({"category": wanted.stratify} if wanted.stratify else {})
    lost = next((name for name in written if name in kept), None)
    if lost is not None:
        raise ConfigError(f"--keep {lost}: in the rows that are written {lost!r} is {written[lost]}; rename the column")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "/".join(f"{100 * share:g}" for share in value)
    return "nothing" if value is None or value is False else str(value)


def _check_columns(wanted: Wanted, found: Gathered) -> None:
    for option, name, there in (
        ("--group-by", wanted.group_by, any(found.keys)),
        ("--stratify", wanted.stratify, bool(found.category_names)),
    ):
        if name is not None and not there and len(found.ids):
            what = "; ".join(f"{reading.path}: {describe(reading)}" for reading in wanted.readings)
            raise ConfigError(f"{option}: no row has a column {name!r} ({what}); name one that is there")
    for name in dict.fromkeys(name for reading in wanted.readings for name in reading.keep):
        if name not in found.columns and len(found.ids):
            raise ConfigError(
                f"--keep: no row has a value in a column {name!r}; name one that is there, or leave it out"
            )


def _check_left(found: Gathered, placed: Placed) -> None:
    if not (placed >= 0).any():
        why = ", ".join(f"{count} {reason}" for reason, count in found.removed.items())
        raise DataError(f"none of {sum(found.rows_read)} rows is left ({why}); give rows with questions and answers")
    if len(found.first) > 1:
        raise DataError(
            f"{found.first['text']}: is plain text, and {found.first['conversation']} a conversation, which one file "
            "cannot hold; prepare them into two folders"
        )


# --- near-duplicates -----------------------------------------------------------------------------------------------


def _near(
    found: Gathered, folder: Path, threshold: float, known: list[str] | None, tell: Tell
) -> tuple[Labels, frozenset[str]]:
    """The cluster of each row, int64 [n]; and what most rows share (`known`: of the earlier run), left out of it."""
    ids = found.hashes("ids")
    labels = np.arange(len(ids), dtype=np.int64)
    if not threshold:
        return labels, frozenset()
    first = np.sort(np.unique(ids, return_index=True)[1])  # of rows with the same content
    wanted = np.zeros(len(ids), np.bool_)
    wanted[first] = True
    if known is None:
        step = max(len(first) // _SAMPLE, 1)
        common = shared([text for i, text in enumerate(_texts(folder, wanted)) if i % step == 0])
    else:
        common = frozenset(known)  # or old rows would be compared otherwise than before
    signed = np.empty((len(first), NUM_HASHES), np.uint32)
    batch: list[str] = []
    done = 0
    for text in _texts(folder, wanted):
        batch.append(text)
        if len(batch) == _BATCH or done + len(batch) == len(first):
            tell("comparing", done)
            signed[done : done + len(batch)] = signatures(batch, common)
            done += len(batch)
            batch = []
    labels[first] = first[clusters(signed, threshold)]
    return labels, common


def _texts(folder: Path, wanted: np.ndarray) -> Iterator[str]:
    with (folder / "texts").open("rb") as file:
        for line, take in zip(file, wanted.tolist(), strict=True):
            if take:
                yield line[:-1].decode()


# --- writing -------------------------------------------------------------------------------------------------------


def _deal(found: Gathered, ties: Ties, placed: Placed, folder: Path, tell: Tell) -> None:
    """Each finished line to the file of its split, each row left out to `removed.jsonl`."""
    order = np.argsort(ties.ids, kind="stable")
    standing_in = dict.fromkeys(ties.ids[placed == DUPLICATE].tolist(), 0)
    for row in order.tolist() if standing_in else ():
        if placed[row] != DUPLICATE and int(ties.ids[row]) in standing_in:
            standing_in[int(ties.ids[row])] = row
    files = {split: (folder / f"{SPLITS[split]}.jsonl").open("wb") for split in set(placed[placed >= 0].tolist())}
    paths = list(found.paths)
    with (folder / "lines.jsonl").open("rb") as lines, (folder / REMOVED).open("a", encoding="utf-8") as removed:
        for row, (line, split) in enumerate(zip(lines, placed.tolist(), strict=True)):
            if row % _BATCH == 0:
                tell("writing", row)
            if split >= 0:
                files[split].write(line)
                continue
            of = {"of": found.place(standing_in[found.ids[row]])} if split == DUPLICATE else {}
            remove(removed, paths[found.files[row]], found.lines[row], _WHY[split], **of)
            found.removed[_WHY[split]] += 1
    for file in files.values():
        file.close()
    (folder / "lines.jsonl").unlink()
    (folder / "texts").unlink()


def _manifest(
    wanted: Wanted,
    arguments: dict[str, Any],
    found: Gathered,
    ties: Ties,
    group: Labels,
    placed: Placed,
    ledger: Ledger,
    common: frozenset[str],
) -> dict[str, Any]:
    splits = _splits(wanted, found, placed)
    kept = placed >= 0
    sizes, near_sizes = np.bincount(group[kept]), np.bincount(ties.near[kept])
    grouped = {
        "count": int((sizes > 0).sum()),
        "of_several": int((sizes > 1).sum()),
        "largest": int(sizes.max()),
        # Near-duplicates over a row that was left out are none; two old ones would have been tied before.
        "straddling": straddling(replace(ties, near=np.arange(len(placed))), placed),
        "near_duplicate_groups": int((near_sizes > 1).sum()),
        "near_duplicate_rows": int(near_sizes[near_sizes > 1].sum()),
    }
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "arguments": arguments,
        "inputs": [_input(reading, rows) for reading, rows in zip(wanted.readings, found.rows_read, strict=True)],
        "rows": {
            "read": sum(found.rows_read),
            "kept": int(kept.sum()),
            "removed": dict(sorted(found.removed.items())),
            "in_ledger": len(ledger.ids),
        },
        "cleaned": {kind: asdict(change) for kind, change in sorted(found.cleaned.items())},
        "splits": splits,
        "groups": grouped,
        "warnings": _warnings(wanted, splits, grouped, int(kept.sum()), found.removed),
        "shared": sorted(common),
    }


def _input(reading: Reading, rows: int) -> dict[str, Any]:
    files = {str(path): sha256_of(path) for path in reading.files()}
    one = next(iter(files.values())) if len(files) == 1 else None
    how = {"format": reading.format, "columns": dict(reading.columns), "keep": list(reading.keep)}
    what = describe(reading)
    return {"path": str(reading.path), **how, "rows": rows, "what": what, "sha256": one, "files": files}


def _splits(wanted: Wanted, found: Gathered, placed: Placed) -> dict[str, Any]:
    categories, names = found.numbers("categories"), list(found.category_names)
    lengths = {"question_characters": found.numbers("questions"), "answer_characters": found.numbers("answers")}
    splits = {}
    for number, (name, asked) in enumerate(zip(SPLITS, wanted.shares, strict=True)):
        here = placed == number
        if not here.any() and not asked:
            continue
        counts = Counter(categories[here & (categories >= 0)].tolist())
        splits[name] = {
            "rows": int(here.sum()),
            "share": float(here.sum() / (placed >= 0).sum()),
            "asked": asked,
            "categories": {names[category]: count for category, count in sorted(counts.items())},
            **{part: _quantiles(values[here]) for part, values in lengths.items()},
        }
    return splits


def _quantiles(values: Labels) -> dict[str, int]:
    if not len(values):
        return {"median": 0, "p95": 0, "max": 0}
    median, p95 = np.quantile(values, (0.5, 0.95))
    return {"median": round(float(median)), "p95": round(float(p95)), "max": int(values.max())}


def _warnings(
    wanted: Wanted, splits: dict[str, Any], grouped: dict[str, int], kept: int, removed: Counter[str]
) -> list[str]:
    warnings = []
    total: Counter[str] = Counter()
    for split in splits.values():
        total.update(split["categories"])
    for name, split in splits.items():
        if not split["rows"]:
            warnings.append(f"{name} got no row, so there is no {name}.jsonl; more rows, or another --split, help")
            continue
        lacking = [category for category, count in sorted(total.items()) if not split["categories"].get(category)]
        expected = [category for category in lacking if total[category] * split["asked"] >= 1]
        if expected:
            warnings.append(
                f"{name} has no row of {', '.join(map(repr, expected[:5]))}; whole groups are dealt by hash"
            )
    if kept > 50 and grouped["largest"] > _GIANT * kept:
        warnings.append(
            f"one group has {grouped['largest']:,} of {kept:,} rows, all in one split: they share a prompt, a key or "
            f"most of their words; look at them, or give a higher --near (now {wanted.near:g})"
        )
    if grouped["straddling"]:
        warnings.append(
            f"{grouped['straddling']:,} groups straddle splits: their rows were tied only after an earlier run had "
            "placed them; a new --out splits them anew"
        )
    if removed[_WHY[BRIDGE]]:
        warnings.append(
            f"{removed[_WHY[BRIDGE]]:,} new rows tie old rows of two splits together and were left out "
            f"({REMOVED}); a new --out places them"
        )
    return warnings
