"""What the audit counted in the training data, as the report shows it: one part a file, from `data/report.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_ft.evaluation.report.evidence import Evidence
from distributed_ft.evaluation.report.facts import Facts, number, titles
from distributed_ft.evaluation.report.plots import NARROW, WIDE, Size, lengths_plot

_MOST_BARS = 12


@dataclass(frozen=True)
class Bar:
    """One of several counts: its share of the largest is how long it is drawn."""

    name: str
    count: int
    share: float  # of all
    width: float  # of the largest

    @property
    def text(self) -> str:
        """`1,234 (56%)`."""
        return f"{self.count:,} ({self.share:.1%})"


@dataclass(frozen=True)
class Overlap:
    """How much of what the model is judged by stands in the file."""

    name: str
    items: int
    seen: int
    rows: int  # of the file that hold them


@dataclass(frozen=True)
class DataFile:
    """A training file."""

    name: str
    facts: Facts
    lengths: tuple[str, ...]  # inline SVG, for a wide page and for a phone
    bars: tuple[tuple[str, tuple[Bar, ...]], ...]  # title, bars: categories, answers, forms, languages
    overlaps: tuple[Overlap, ...]
    clusters: tuple[tuple[int, int, str], ...]  # rows, line of the first, its text: of near-duplicates


def files(evidence: Evidence) -> tuple[DataFile, ...]:
    """Nothing where the run has no audit."""
    stored = evidence.data.get("statistics")
    if not isinstance(stored, dict):
        return ()
    names = titles(list(stored))
    return tuple(
        _file(index, name, told)
        for index, (name, told) in enumerate(zip(names, stored.values(), strict=True))
        if isinstance(told, dict)
    )


def _file(index: int, name: str, told: Mapping[str, Any]) -> DataFile:
    lengths, clusters = told.get("lengths") or {}, told.get("duplicates") or {}
    diversity = told.get("diversity") or {}
    facts: Facts = [("Rows", number(told.get("rows", 0)))]
    if clusters.get("clusters"):
        facts.append(("Near-duplicates", f"{clusters['rows']:,} rows in {clusters['clusters']:,} clusters"))
    for label, key in (("Median prompt", "median_prompt"), ("Median answer", "median_answer")):
        if lengths.get(key) is not None:
            facts.append((label, f"{lengths[key]:,.0f} characters"))
    if diversity.get("distinct_2") is not None:
        facts.append(("Different word pairs in answers", f"{diversity['distinct_2']:.1%}"))
    if diversity.get("most_frequent_answer") is not None:
        facts.append(("Most frequent answer", f"{diversity['most_frequent_answer']:.1%} of the rows"))
    counted = [("Categories", told.get("categories")), *(_labels(told.get("labels")))]
    counted += [("Forms of answers", told.get("forms")), ("Languages", told.get("languages"))]
    return DataFile(
        name=name,
        facts=facts,
        lengths=_lengths(index, lengths),
        bars=tuple((title, bars(counts)) for title, counts in counted if counts and len(counts) > 1),
        overlaps=tuple(
            Overlap(name, o["items"], o["seen"], o["rows"]) for name, o in (told.get("contamination") or {}).items()
        ),
        clusters=tuple((c["rows"], c["line"], c["text"]) for c in (clusters.get("largest") or [])[:5]),
    )


def _labels(labels: Mapping[str, Mapping[str, int]] | None) -> list[tuple[str, Mapping[str, int]]]:
    return [(f"Answers: {name}" if name else "Answers", counts) for name, counts in (labels or {}).items()]


def _lengths(index: int, lengths: Mapping[str, Any]) -> tuple[str, ...]:
    if not lengths.get("edges") or len(lengths["edges"]) < 3:
        return ()
    sizes: tuple[Size, ...] = (WIDE, NARROW)
    return tuple(lengths_plot(lengths["edges"], lengths["prompt"], lengths["answer"], index, size) for size in sizes)


def bars(counts: Mapping[str, int]) -> tuple[Bar, ...]:
    """The largest, and one for all the others."""
    total = sum(counts.values()) or 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= _MOST_BARS else ordered[: _MOST_BARS - 1]
    rest = ordered[len(shown) :]
    if rest:
        shown = [*shown, (f"{len(rest):,} others", sum(count for _, count in rest))]
    largest = max((count for _, count in shown), default=1) or 1
    return tuple(Bar(name or "(none)", count, count / total, count / largest) for name, count in shown)
