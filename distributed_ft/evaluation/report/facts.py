"""What was trained, on what, with what, at what cost: label and value, for the report's tables. Pure."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ft.evaluation.report.evidence import (
    CheckpointScores,
    Divergence,
    Evidence,
    Forgetting,
    TaskComparison,
    Training,
)
from distributed_ft.evaluation.verdict import (
    bare_points,
    fixed_percent,
    percent,
    percents_interval,
    points,
    points_interval,
)

Facts = list[tuple[str, str]]
UNKNOWN = "\N{EN DASH}"
SHARES = ("macro_f1", "majority", "instruction_accuracy", "over_refusal", "under_refusal")
"""Totals that are shares; the others have units of their own."""


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


def prompts(evidence: Evidence) -> list[str]:
    """For each task whose number of examples was chosen: which were tried, and what they scored."""
    return [
        f"{prompt.task}: {prompt.used} in the few-shot prompt, chosen on {number(prompt.n)} validation rows among "
        + ", ".join(f"{k} ({100 * score:.1f}%)" for k, score in prompt.tried)
        for prompt in evidence.prompts
    ]


def about_checkpoints(evidence: Evidence) -> list[str]:
    """By which rows they are told apart, where that is not as everywhere else; why there are no more of them."""
    told = []
    if evidence.choosing is not None:
        items = evidence.choosing.base or evidence.choosing.tuned
        which = evidence.choosing.name + (f", {number(items.n)} items" if items else "")
        told.append(f"Task scores here are on validation rows ({which}), by which the best is chosen")
    if evidence.ended_early is not None:
        told.append(f"The training ended early: {evidence.ended_early}")
    return told


@dataclass(frozen=True)
class StrengthRow:
    """One strength of an adapter, in words; `drop` is empty without a general suite."""

    strength: str
    score: str
    score_interval: str
    drop: str
    drop_interval: str
    recommended: bool
    over: bool  # the budget


@dataclass(frozen=True)
class StrengthFacts:
    told: str
    rows: tuple[StrengthRow, ...]


def strength(evidence: Evidence) -> StrengthFacts | None:
    """What less of the adapter keeps and costs; None where it was not measured."""
    found = evidence.strength
    if found is None:
        return None
    named, rows = {0.0: "0, the base", 1.0: "1, as trained"}, []
    for p in found.points:
        measured = p.mean_drop is not None and p.drop_low is not None and p.drop_high is not None and p.strength > 0
        within = f"[{bare_points(p.drop_low or 0)}, {bare_points(p.drop_high or 0)}]" if measured else ""
        rows.append(
            StrengthRow(
                strength=named.get(p.strength, f"{p.strength:g}"),
                score=fixed_percent(p.accuracy),
                score_interval=f"[{100 * p.low:.1f}, {100 * p.high:.1f}]",
                drop="" if p.mean_drop is None else bare_points(p.mean_drop),
                drop_interval=within,
                recommended=p.strength == found.recommended,
                over=not p.inside_budget,
            )
        )
    of = f"step {found.step}'s adapter"
    if found.recommended is None:
        return StrengthFacts(f"Of {of}, no strength is recommended: {found.reason}.", tuple(rows))
    told = f"Recommended for {of}: {found.recommended:g} ({found.reason})."
    tested = [
        f"{r.task} {fixed_percent(r.score)} [{100 * r.low:.1f}, {100 * r.high:.1f}] (n {r.n})" for r in found.on_test
    ]
    told += f" On the test rows, which no strength was chosen by, it scores {', '.join(tested)}." if tested else ""
    command = f"dft export {shlex.quote(evidence.path)} --out DIR --checkpoint {found.step} --scale recommended"
    return StrengthFacts(f"{told} `{command}` writes it." if found.recommended < 1 else told, tuple(rows))


def also_measured(comparison: TaskComparison) -> list[tuple[str, tuple[str, ...]]]:
    """What else is known of a task's answers: name, and the figures of base, few-shot prompt and tuned in words.

    Means over items are shares. Totals have units of their own; those of single labels are in the confusion matrix.
    """
    rows = [(name, tuple(map(_share, three))) for name, three in comparison.further.items()]
    for name, three in comparison.totals.items():
        if not name.startswith(("f1[", "confusion[")):
            told = _share if name in SHARES else _figure
            rows.append((name, tuple(map(told, three))))
    if any(comparison.empty):
        rows.append(("empty answers", tuple(map(_share, comparison.empty))))
    return [(name.replace("_", " ").replace("macro f1", "macro-F1"), three) for name, three in rows]


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else fixed_percent(value)


def _figure(value: float | None) -> str:
    """With four digits, or none behind the point where it is large."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


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


def lost(checkpoint: CheckpointScores | None) -> Facts:
    """All that a checkpoint lost."""
    return [] if checkpoint is None else [*forgotten(checkpoint.forgetting), *drift(checkpoint.drift)]


def drift(found: Divergence | None) -> Facts:
    """How far a checkpoint is from the base where neither is asked."""
    if found is None:
        return []
    measured = f"{found.kl:.3f} [{found.low:.3f}, {found.high:.3f}] nats a token"
    return [("KL to the base", f"{measured} (the next of {number(found.tokens)} tokens in {found.texts} texts)")]


def forgotten(found: Forgetting | None) -> Facts:
    """What a checkpoint lost of the general skills, each number with what bounds it."""
    if found is None:
        return []
    ceiling = "" if found.ceiling is None else f", of at most {percent(found.ceiling)} (what the base model knew)"
    rows = [("Right, then wrong", f"{percent(found.rate)} {percents_interval(found.low, found.high)}{ceiling}")]
    if found.of_known is not None and found.of_known_low is not None and found.of_known_high is not None:
        bounds = percents_interval(found.of_known_low, found.of_known_high)
        rows.append(("Of what the base model knew", f"{percent(found.of_known)} {bounds}"))
    drop = f"[{bare_points(found.drop_low)}, {bare_points(found.drop_high)}]"
    rows.append(("Mean drop", f"{bare_points(found.mean_drop)} points {drop}"))
    if found.backward_transfer is not None and found.backward_low is not None and found.backward_high is not None:
        bounds = points_interval(found.backward_low, found.backward_high)
        rows.append(("Backward transfer", f"{points(found.backward_transfer)} points {bounds}"))
    return rows


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
