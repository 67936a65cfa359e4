"""The data card: what a prepared directory holds, in Markdown, and what only its owner can say of it. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from distributed_ft.data.cleaning import KINDS

OWN = "<!-- Below this line the card is yours: it is kept when the data is prepared again. -->"
_OWN_DEFAULT = """\
## About this data

- **Licence**: to be filled in
- **Where it comes from, and who wrote it**: to be filled in
- **What it is for, and what not**: to be filled in
- **Personal data, and the consent to use it**: to be filled in
- **Known gaps and biases**: to be filled in
"""


def card(manifest: Mapping[str, Any], earlier: str | None) -> str:
    """README.md of what `manifest` describes; `earlier`: the card that it replaces, whose own part is kept."""
    own = earlier.split(OWN, 1)[1].lstrip("\n") if earlier and OWN in earlier else _OWN_DEFAULT
    rows = manifest["rows"]
    parts = [
        f"# Prepared data: {rows['kept']:,} of {rows['read']:,} rows",
        "Made by `dft data prepare`; `manifest.json` says the same for programs, `removed.jsonl` lists every row left "
        "out, and `ledger.txt` keeps each row in its split when rows are added and the command is run again.",
        *(f"> **Note**: {warning}" for warning in manifest["warnings"]),
        "## Splits\n" + _splits(manifest["splits"]),
        "## Categories\n" + _categories(manifest["splits"]),
        "## Groups\n" + _groups(manifest),
        "## Removed\n" + _removed(rows["removed"]),
        "## Cleaned\n" + _cleaned(manifest["cleaned"]),
        "## Inputs\n" + _inputs(manifest["inputs"]),
        "## Files\n" + _files(manifest["files"]),
        "Languages, personal data and contamination are looked at by `dft data audit`.",
    ]
    return "\n\n".join(parts) + f"\n\n{OWN}\n\n{own}"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(header)
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _splits(splits: Mapping[str, Any]) -> str:
    rows = []
    for name, split in splits.items():
        lengths = [split[f"{part}_characters"] for part in ("question", "answer")]
        shown = ["{} / {} / {}".format(*(f"{length[k]:,}" for k in ("median", "p95", "max"))) for length in lengths]
        rows.append([name, split["rows"], f"{split['share']:.1%}", f"{split['asked']:.1%}", *shown])
    header = ["Split", "Rows", "Share", "Asked for", "Question, characters (median / 95% / longest)"]
    return _table([*header, "Answer, characters"], rows)


def _categories(splits: Mapping[str, Any]) -> str:
    total: dict[str, int] = {}
    for split in splits.values():
        for category, count in split["categories"].items():
            total[category] = total.get(category, 0) + count
    if not total:
        return "The rows have no category."
    ranked = sorted(total, key=lambda category: (-total[category], category))
    rows: list[list[object]] = []
    for category in ranked[:30]:
        counts = [split["categories"].get(category, 0) for split in splits.values()]
        rows.append([category, *(f"{count:,} ({count / total[category]:.0%})" for count in counts)])
    more = f"\n\nand {len(ranked) - 30:,} more, in `manifest.json`" if len(ranked) > 30 else ""
    return _table(["Category", *splits], rows) + more


def _groups(manifest: Mapping[str, Any]) -> str:
    groups, arguments = manifest["groups"], manifest["arguments"]
    tied = ["the same prompt"]
    if arguments["group_by"]:
        tied.append(f"the same `{arguments['group_by']}`")
    if arguments["near"]:
        tied.append(f"at least {arguments['near']:.0%} of their word triples (MinHash)")
    return (
        f"Rows with {' or '.join(tied)} are one group, and a group is in one split only: {groups['count']:,} groups, "
        f"{groups['of_several']:,} of them of several rows, the largest of {groups['largest']:,}. Near-duplicates: "
        f"{groups['near_duplicate_rows']:,} rows in {groups['near_duplicate_groups']:,} groups."
    )


def _removed(removed: Mapping[str, int]) -> str:
    return _table(["Why", "Rows"], removed.items()) if removed else "Nothing."


def _cleaned(cleaned: Mapping[str, Any]) -> str:
    if not cleaned:
        return "Nothing had to be changed."
    rows = [[KINDS[kind], found["rows"], found["changes"]] for kind, found in cleaned.items()]
    return _table(["What", "Rows", "Changes"], rows)


def _inputs(inputs: Iterable[Mapping[str, Any]]) -> str:
    rows = [[f"`{entry['path']}`", entry["rows"], entry["what"], f"`{entry['sha256'] or '-'}`"] for entry in inputs]
    return _table(["Source", "Rows", "Read as", "sha256"], rows)


def _files(files: Mapping[str, Any]) -> str:
    return _table(["File", "Bytes", "sha256"], ([f"`{n}`", f["size"], f"`{f['sha256']}`"] for n, f in files.items()))
