"""What was trained, on what, with what, at what cost: label and value, for the report's tables. Pure."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed_ft.evaluation.report.evidence import Evidence, Training

Facts = list[tuple[str, str]]


def settings(config: dict[str, Any]) -> Facts:
    """The settings that decide a run's outcome; the whole of them is in config.json."""
    if not config:
        return []
    optim, method, strategy = (config.get(key) or {} for key in ("optim", "method", "strategy"))
    model, data = config.get("model") or {}, config.get("data") or {}
    facts = [
        ("Base model", model.get("base")),
        ("Method", _named(method)),
        ("Strategy", _named(strategy)),
        ("Preset", config.get("preset")),
        ("Precision", model.get("dtype")),
        ("Optimizer", _joined(optim.get("name"), _labelled("lr", optim.get("lr")), optim.get("schedule"))),
        ("Warm-up", _warmup(optim)),
        (
            "Length",
            f"{optim['max_steps']} steps" if optim.get("max_steps") else _labelled("epochs", optim.get("epochs")),
        ),
        ("Batch", _batch(optim, data)),
        ("Seed", config.get("seed")),
    ]
    return [(label, str(value)) for label, value in facts if value not in (None, "")]


def data(evidence: Evidence) -> Facts:
    """Files and counts from `data/report.json` and the settings."""
    stored = evidence.data
    counted = [source for source in stored.get("sources") or [] if isinstance(source, dict)]
    listed = [_drawn(s) for s in counted] or _sources((evidence.config.get("data") or {}).get("train"))
    facts: Facts = [("Training file", text) for text in listed]
    if isinstance(stored.get("rows_in"), int):
        used = stored.get("rows_used")
        facts.append(
            ("Rows", number(stored["rows_in"]) + (f", of which used {number(used)}" if isinstance(used, int) else ""))
        )
    if isinstance(stored.get("supervised_tokens"), int):
        facts.append(("Supervised tokens", number(stored["supervised_tokens"])))
    if isinstance(stored.get("packing_efficiency"), int | float):
        facts.append(("Packing", f"{100 * stored['packing_efficiency']:.1f}% of the slots are supervised tokens"))
    if isinstance(stored.get("packing_fill"), int | float):
        facts.append(("Sequences", f"{100 * stored['packing_fill']:.1f}% full"))
    return facts


def data_findings(evidence: Evidence) -> list[dict[str, Any]]:
    """Of the data audit: `severity`, `id`, `count`, `message`, `file`, `waived`, `examples`."""
    found = evidence.data.get("findings")
    rows = [f for f in found if isinstance(f, dict)] if isinstance(found, list) else []
    known = evidence.data.get("statistics")
    paths = list(dict.fromkeys([*(known or ()), *(str(row["path"]) for row in rows if row.get("path"))]))
    named = dict(zip(paths, titles(paths), strict=True))
    return [
        {
            **{key: str(row.get(key, "")) for key in ("severity", "id", "count", "message")},
            "file": named.get(str(row.get("path")), ""),
            "waived": bool(row.get("waived")),
            "examples": row.get("examples") or [],
        }
        for row in rows
    ]


def titles(paths: Sequence[str]) -> list[str]:
    """The name of each file; where another has the same, with the folder that it is in, or else its whole path."""
    names = [Path(path).name for path in paths]
    longer = ["/".join(Path(path).parts[-2:]) for path in paths]
    return [
        name if names.count(name) == 1 else more if longer.count(more) == 1 else path
        for name, more, path in zip(names, longer, paths, strict=True)
    ]


def cost(training: Training, evaluation_seconds: float) -> Facts:
    facts: Facts = []
    if training.steps:
        passes = f" ({training.epochs:.2f} epochs)" if training.epochs is not None else ""
        facts.append(("Steps", number(training.steps) + passes))
    if training.seconds:
        facts.append(("Time in steps", duration(training.seconds)))
    if training.tokens:
        facts.append(("Supervised tokens seen", number(training.tokens)))
    if training.tokens_per_second:
        facts.append(("Throughput", f"{number(round(training.tokens_per_second))} supervised tokens/s"))
    if evaluation_seconds:
        facts.append(("Time in evaluation", duration(evaluation_seconds)))
    return facts


def environment(stored: dict[str, Any]) -> Facts:
    """Whatever `environment.json` holds, one fact per key."""
    return [
        (key.replace("_", " "), text) for key, value in stored.items() if key != "schema" and (text := _flat(value))
    ]


def key_and_rest(remedy: str) -> tuple[str, str]:
    """(`optim.lr`, ` lower`) of `optim.lr: lower`; an empty key where the remedy does not begin with one."""
    key, colon, rest = remedy.partition(":")
    return (key, rest) if colon and re.fullmatch(r"\w+(\.\w+(\[\])?)+", key) else ("", remedy)


def number(value: float) -> str:
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Two units are enough: `2 h 5 min`, `3 min 20 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(_flat(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _named(section: dict[str, Any]) -> str:
    rest = {k: v for k, v in section.items() if k != "type" and v not in (None, False)}
    words = [(key.replace("_", " "), value) for key, value in rest.items()]
    return _joined(section.get("type"), *(key if value is True else _labelled(key, value) for key, value in words))


def _batch(optim: dict[str, Any], data: dict[str, Any]) -> str | None:
    if "global_batch_size" not in optim:
        return None
    packed = "packed" if data.get("packing") else "not packed"
    micro = _labelled("micro-batch", optim.get("micro_batch_size"))
    return _joined(
        f"{optim['global_batch_size']} \N{MULTIPLICATION SIGN} {data.get('seq_len', '?')} tokens", packed, micro
    )


def _warmup(optim: dict[str, Any]) -> str | None:
    if optim.get("warmup_steps") is not None:
        return f"{optim['warmup_steps']} steps"
    ratio = optim.get("warmup_ratio")
    return None if ratio is None else f"{100 * ratio:g}% of the steps"


def _sources(train: Any) -> list[str]:
    listed = train if isinstance(train, list) else [train] if train else []
    return [
        f"{s.get('path')}" + (f", weight {s['weight']:g}" if s.get("weight") else "") if isinstance(s, dict) else str(s)
        for s in listed
    ]


def _drawn(source: dict[str, Any]) -> str:
    """One entry of `sources` in `data/report.json`."""
    used, weight, share = source.get("rows_used"), source.get("weight"), source.get("drawn_share")
    return _joined(
        str(source.get("path")),
        f"{number(used)} rows" if isinstance(used, int) else None,
        _labelled("weight", weight),
        f"{100 * share:.0f}% of an epoch" if isinstance(share, int | float) else None,
    )


def _labelled(label: str, value: Any) -> str | None:
    return None if value is None else f"{label} {_flat(value)}"


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
