"""`dft data prepare`: what the command line says, and what came out of it."""

import argparse
from pathlib import Path
from typing import Any

from distributed_ft.errors import EXIT_DONE, ConfigError


def prepare(args: argparse.Namespace) -> int:
    """Clean and split raw files into a folder to train from. Raises DataError, ConfigError."""
    shares = _shares(args.split)
    keep = [name for name in (args.group_by, args.stratify, *args.keep.split(",")) if name]
    columns = _columns(args.columns)
    from distributed_ft.data.curate import Wanted, curate
    from distributed_ft.data.pool import shown
    from distributed_ft.data.reading import Reading

    wanted = Wanted(
        tuple(Reading(path, args.format, columns, keep=tuple(dict.fromkeys(keep))) for path in args.raw),
        Path(args.out).absolute(),
        shares,
        group_by=args.group_by,
        stratify=args.stratify,
        min_answer=args.min_answer,
        near=args.near,
        drop_near=args.drop_near,
        skip_bad=args.skip_bad,
    )
    with shown() as tell:
        manifest = curate(wanted, tell)
    print(summary(manifest, args.out))
    return EXIT_DONE


def summary(manifest: dict[str, Any], out: str) -> str:
    """What was made, for the terminal."""
    rows, groups = manifest["rows"], manifest["groups"]
    removed = ", ".join(f"{count:,} {reason}" for reason, count in rows["removed"].items()) or "nothing"
    splits = ", ".join(f"{name} {s['rows']:,} ({s['share']:.1%})" for name, s in manifest["splits"].items())
    cleaned = sum(change["changes"] for change in manifest["cleaned"].values())
    lines = [
        *(f"read     {entry['path']}: {entry['rows']:,} rows; {entry['what']}" for entry in manifest["inputs"]),
        f"removed  {removed}",
        f"cleaned  {cleaned:,} places in the white space",
        f"groups   {groups['count']:,}, the largest of {groups['largest']:,} rows; "
        f"{groups['near_duplicate_rows']:,} near-duplicates in {groups['near_duplicate_groups']:,} of them",
        f"splits   {splits}",
        *(f"warning  {warning}" for warning in manifest["warnings"]),
        f"\n{out}: README.md is its data card; run the command again with more rows, and no old one moves",
    ]
    return "\n".join(lines)


def _shares(text: str) -> tuple[float, float, float]:
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) not in (2, 3) or any(not 0 <= part <= 100 for part in parts) or abs(sum(parts) - 100) > 0.01:
        raise ConfigError(
            f"--split {text}: not percentages of train, validation and test that make 100; write for example 80/10/10"
        )
    if parts[0] == 0:
        raise ConfigError(f"--split {text}: leaves nothing to train on; write for example 80/10/10")
    train, validation, test = (*parts, 0.0)[:3]
    return train / 100, validation / 100, test / 100


def _columns(text: str) -> dict[Any, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for name, equals, column in pairs:
        if not (name and equals and column):
            raise ConfigError(f"--columns {text}: not names of columns; write prompt=question,completion=answer")
    return {name.strip(): column.strip() for name, _, column in pairs}
