"""The demo task: support tickets in, one JSON object out.

A ticket is put together from phrases; each phrase decides exactly one label or none at all, so the labels follow from
the text alone and `read_labels` recovers them without the generator's random source.
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Final

from recipes.skills import Row, compact_json
from recipes.ticket_phrases import (
    CONTEXTS,
    DISTRACTORS,
    ENDINGS,
    GREETINGS,
    ISSUES,
    ORDER_MENTIONS,
    PRIORITIES,
    QUESTION_ENDINGS,
    QUESTION_WORDS,
    REPLIES,
    SIGNATURES,
    TYPOS,
)
from recipes.words import CITIES, DAYS, NAMES, PRODUCTS

INSTRUCTION: Final[str] = "Turn this support ticket into JSON with category, priority, order_id, reply_needed."

SCHEMA: Final[dict[str, object]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Support ticket",
    "type": "object",
    "properties": {
        "category": {"enum": list(ISSUES)},
        "priority": {"enum": ["low", "normal", "high", "urgent"]},
        "order_id": {"type": ["string", "null"], "pattern": "^[A-Z]{2}-[0-9]{5}$"},
        "reply_needed": {"type": "boolean"},
    },
    "required": ["category", "priority", "order_id", "reply_needed"],
    "additionalProperties": False,
}

_PRIORITY_WEIGHTS: Final[dict[str, int]] = {"normal": 4, "low": 2, "high": 2, "urgent": 2}
_ORDER_ID: Final[re.Pattern[str]] = re.compile(r"\b[A-Z]{2}-\d{5}\b")


@dataclass(frozen=True)
class Labels:
    """The answer, in the key order in which it is written."""

    category: str
    priority: str
    order_id: str | None
    reply_needed: bool

    def as_json(self) -> str:
        """Compact JSON, keys in the order of the schema."""
        return compact_json(vars(self))


def _labels(rng: Random) -> Labels:
    order_id = None
    if rng.random() < 0.7:
        order_id = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXZ") for _ in range(2)) + f"-{rng.randrange(10000, 100000)}"
    return Labels(
        category=rng.choice(tuple(ISSUES)),
        priority=rng.choices(tuple(_PRIORITY_WEIGHTS), tuple(_PRIORITY_WEIGHTS.values()))[0],
        order_id=order_id,
        reply_needed=rng.random() < 0.7,
    )


def _misspell(rng: Random, text: str) -> str:
    """Misspells up to two words that have a known misspelling, in two tickets out of five."""
    if rng.random() > 0.4:
        return text
    present = [word for word in TYPOS if re.search(rf"\b{word}\b", text)]
    for word in rng.sample(present, min(len(present), 2)):
        text = re.sub(rf"\b{word}\b", TYPOS[word], text, count=1)
    return text


def _body(rng: Random, labels: Labels, slots: dict[str, object]) -> str:
    """The sentences between greeting and signature: the issue early, the other lines in any order."""
    issue = rng.choice(ISSUES[labels.category])
    issue += rng.choice(QUESTION_ENDINGS if issue.startswith(QUESTION_WORDS) else ENDINGS)
    others = [rng.choice(PRIORITIES[labels.priority])]
    if labels.order_id is not None:
        others.append(rng.choice(ORDER_MENTIONS))
    others += rng.sample(DISTRACTORS, rng.choice((0, 1, 1, 2)))
    contexts = rng.sample(CONTEXTS, rng.choice((0, 1, 1)))
    rng.shuffle(others)
    lead = others[: rng.choice((0, 0, 1))]
    sentences = [*contexts, *lead, issue, *others[len(lead) :], rng.choice(REPLIES[labels.reply_needed])]
    # A product or a name that comes twice in a ticket need not be the same one, so each sentence is filled on its own.
    filled = [line.format(**slots | {"n": rng.choice(NAMES), "o": labels.order_id}) for line in sentences if line]
    return _misspell(rng, " ".join(filled))


def ticket(rng: Random) -> tuple[str, Labels]:
    """One ticket text (about 25 to 70 words) and its labels."""
    labels = _labels(rng)
    slots: dict[str, object] = {
        "p": rng.choice(PRODUCTS),
        "d": rng.choice(DAYS),
        "e": rng.randint(10, 499),
        "k": rng.randint(2, 9),
        "a": rng.randint(100, 999),
        "b": rng.randint(10000, 999999),
        "n": rng.choice(NAMES),
        "c": rng.choice(CITIES),
    }
    greeting = rng.choice(GREETINGS).format(**slots)
    signature = rng.choice(SIGNATURES).format(**slots | {"n": rng.choice(NAMES)})
    gap = rng.choice(("\n", " "))
    return gap.join(part for part in (greeting, _body(rng, labels, slots), signature) if part), labels


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w\\\}", r"[\\w-]+", re.escape(template)))


_ISSUE_PATTERNS: Final[list[tuple[str, re.Pattern[str]]]] = [
    (category, _pattern(template)) for category, templates in ISSUES.items() for template in templates
]


def read_labels(text: str) -> Labels:
    """The labels that the text itself states; misspellings are undone first. ValueError if not unique."""
    for word, typo in TYPOS.items():
        text = re.sub(rf"\b{typo}\b", word, text)
    categories = {category for category, pattern in _ISSUE_PATTERNS if pattern.search(text)}
    priorities = {name for name, cues in PRIORITIES.items() if name != "normal" for cue in cues if cue in text}
    orders = set(_ORDER_ID.findall(text))
    if len(categories) != 1 or len(priorities) > 1 or len(orders) > 1:
        raise ValueError(f"labels are not unique: {categories}, {priorities}, {orders} in {text!r}")
    return Labels(
        category=categories.pop(),
        priority=priorities.pop() if priorities else "normal",
        order_id=orders.pop() if orders else None,
        reply_needed=not any(cue in text for cue in REPLIES[False]),
    )


def ticket_rows(counts: dict[str, int], seed: int) -> dict[str, list[Row]]:
    """`counts` gives the rows of each split; no ticket text comes twice, in one split or in two."""
    rng = Random(f"{seed}|tickets")
    seen: set[str] = set()
    made: dict[str, list[Row]] = {}
    for split, count in counts.items():
        made[split] = []
        while len(made[split]) < count:
            text, labels = ticket(rng)
            if text in seen:
                continue
            seen.add(text)
            messages = [
                {"role": "user", "content": f"{INSTRUCTION}\n\n{text}"},
                {"role": "assistant", "content": labels.as_json()},
            ]
            made[split].append(Row(id=f"tickets-{split}-{len(made[split]):04d}", skill="tickets", messages=messages))
    return made
