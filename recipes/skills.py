"""Seeded generators of the general skills: what the shipped base model is taught, and what forgetting is measured on.

Every skill makes an `Item` (content key, question, answer) from a random source. An item belongs to the held-out split
when the hash of its *content* says so, whatever its phrasing, so that no held-out operand pair, list or sentence is
seen in training. Memorised tables (country facts, kinds of words) have nothing to hold out: they are asked as learned.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypedDict

from recipes.mail import mail
from recipes.words import BAD, CITIES, COUNTRIES, DAYS, GOOD, KINDS, NAMES, PRODUCTS, TOPICS, UNITS, WORDS

Split = Literal["train", "held-out"]

#: Items whose content hash (0-255) is below this are held out: 12.5% of each skill.
HELD_OUT_BELOW: Final[int] = 32


#: One chat turn: "role" and "content".
Message = dict[str, str]


class Row(TypedDict):
    """One chat row, as it is written to a .jsonl file."""

    id: str
    skill: str
    messages: list[Message]


@dataclass(frozen=True)
class Item:
    """One question and its only right answer; `key` names the content without the phrasing."""

    key: str
    question: str
    answer: str


@dataclass(frozen=True)
class Skill:
    """A named generator. `memorised`: asked as learned. `share`: how often early training draws it."""

    name: str
    make: Callable[[Random], Item]
    memorised: bool = False
    share: float = 1.0


def _ask(rng: Random, phrasings: tuple[str, ...], **slots: object) -> str:
    return rng.choice(phrasings).format(**slots)


def _addition(rng: Random) -> Item:
    a, b = rng.randint(10, 99), rng.randint(1, 9)
    phrasings = (
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "{a} + {b} =",
        "What is the sum of {a} and {b}?",
    )
    return Item(f"{a}+{b}", _ask(rng, phrasings, a=a, b=b), str(a + b))


def _numbers(rng: Random, low: int, high: int) -> list[int]:
    return rng.sample(range(10, 100), rng.randint(low, high))


def _join(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _sorting(rng: Random) -> Item:
    numbers = _numbers(rng, 3, 5)
    phrasings = (
        "Sort these numbers: {n}",
        "Put in ascending order: {n}",
        "Sort from small to large: {n}",
        "Order the numbers {n}.",
    )
    return Item(str(sorted(numbers)), _ask(rng, phrasings, n=_join(numbers)), _join(sorted(numbers)))


def _maximum(rng: Random) -> Item:
    numbers = _numbers(rng, 3, 6)
    phrasings = (
        "What is the largest of {n}?",
        "Which number is the biggest: {n}?",
        "Find the maximum: {n}",
        "Give the highest of {n}.",
    )
    return Item(str(sorted(numbers)), _ask(rng, phrasings, n=_join(numbers)), str(max(numbers)))


def _sentence(rng: Random) -> str:
    """A short sentence in the words of everyday mail, or a run of plain words: material to copy."""
    if rng.random() < 0.5:
        return " ".join(rng.sample(WORDS, rng.randint(3, 6)))
    text = rng.choice(TOPICS[rng.choice(tuple(TOPICS))])
    return text.format(p=rng.choice(PRODUCTS), n=rng.choice(NAMES))


def _copying(rng: Random) -> Item:
    text = _sentence(rng)
    if rng.random() < 0.4:
        text = f"{text} {_code(rng)}"
    phrasings = ("Repeat: {t}", "Copy this text: {t}", "Say exactly this: {t}", "Write again: {t}")
    return Item(text, _ask(rng, phrasings, t=text), text)


def _reversing(rng: Random) -> Item:
    words = rng.sample(WORDS, rng.randint(3, 5))
    phrasings = (
        "Reverse this list: {w}",
        "Write in reverse order: {w}",
        "List backwards: {w}",
        "Turn the list around: {w}",
    )
    return Item(" ".join(words), _ask(rng, phrasings, w=", ".join(words)), ", ".join(reversed(words)))


def _lookup(rng: Random) -> Item:
    keys = rng.sample(rng.choice((WORDS, NAMES, PRODUCTS)), rng.randint(3, 6))
    values = [str(number) for number in rng.sample(range(10, 100), len(keys))]
    if rng.random() < 0.5:
        values = rng.sample(CITIES, len(keys))
    wanted = rng.randrange(len(keys))
    table = "\n".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    phrasings = (
        "{t}\nWhat is the value of {k}?",
        "Table:\n{t}\nLook up {k}.",
        "{t}\nWhich value belongs to {k}?",
        "Use this table.\n{t}\nGive the entry for {k}.",
    )
    return Item(f"{table}?{keys[wanted]}", _ask(rng, phrasings, t=table, k=keys[wanted]), values[wanted])


def _units(rng: Random) -> Item:
    big, small, factor = rng.choice(UNITS)
    value = rng.randint(2, 99)
    source, target, amount, result = big, small, value, value * factor
    if rng.random() < 0.5:
        source, target, amount, result = small, big, result, value
    phrasings = ("Convert {a} {s} to {t}.", "How many {t} are {a} {s}?", "{a} {s} in {t}?", "Write {a} {s} in {t}.")
    return Item(f"{value} {big} {small}", _ask(rng, phrasings, a=amount, s=source, t=target), f"{result} {target}")


def _row(rng: Random) -> Item:
    keys = rng.sample(rng.choice((WORDS, NAMES, PRODUCTS)), rng.randint(3, 6))
    values = [str(number) for number in rng.sample(range(10, 100), len(keys))]
    if rng.random() < 0.5:
        values = rng.sample(CITIES, len(keys))
    lines = [f"{key}: {value}" for key, value in zip(keys, values, strict=True)]
    wanted = rng.randrange(len(keys))
    phrasings = ("{t}\nFind the line of {k}.", "Table:\n{t}\nShow the line of {k}.", "{t}\nWhich line is about {k}?")
    table = "\n".join(lines)
    return Item(f"{table}?{keys[wanted]}", _ask(rng, phrasings, t=table, k=keys[wanted]), lines[wanted])


def _prices(rng: Random) -> Item:
    products = rng.sample(PRODUCTS, rng.randint(2, 6))
    amounts = rng.sample(range(10, 100), len(products))
    wanted = rng.randrange(len(products))
    offer = ", ".join(f"the {product} {amount}" for product, amount in zip(products, amounts, strict=True))
    phrasings = (
        "Price list: {o}. What is the price of the {p}?",
        "In euros: {o}. How much is the {p}?",
        "We sell {o}. Give the price of the {p}.",
        "{o}. Price of the {p}?",
    )
    return Item(f"{offer}?{products[wanted]}", _ask(rng, phrasings, o=offer, p=products[wanted]), str(amounts[wanted]))


_FACTS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("capital", ("What is the capital of {c}?", "Name the capital of {c}.", "Capital of {c}?")),
    ("continent", ("On which continent is {c}?", "Name the continent of {c}.", "Continent of {c}?")),
    ("currency", ("What is the currency of {c}?", "Name the currency of {c}.", "Currency of {c}?")),
    ("language", ("Which language is spoken in {c}?", "Name the language of {c}.", "Language of {c}?")),
)


def _facts(rng: Random) -> Item:
    country = rng.choice(tuple(COUNTRIES))
    column = rng.randrange(len(_FACTS))
    name, phrasings = _FACTS[column]
    return Item(f"{country} {name}", _ask(rng, phrasings, c=country), COUNTRIES[country][column])


def compact_json(value: object) -> str:
    """JSON without spaces and in the order given: the one spelling that answers are compared in."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _person(rng: Random) -> tuple[str, dict[str, object]]:
    name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randint(10, 99)
    known = rng.random() < 0.75
    sentences = (
        ("{n} is {a} years old and lives in {c}.", "{n} from {c} is {a}.", "In {c} lives {n}, who is {a} years old.")
        if known
        else ("{n} lives in {c}.", "{n} is from {c}.", "In {c} lives {n}.")
    )
    return _ask(rng, sentences, n=name, a=age, c=city), {"name": name, "age": age if known else None, "city": city}


def _purchase(rng: Random) -> tuple[str, dict[str, object]]:
    name, item, price = rng.choice(NAMES), rng.choice(PRODUCTS), rng.randint(10, 99)
    paid = rng.random() < 0.5
    sentences = (
        ("{n} bought a {i} for {p} euros and paid.", "The {i} of {n} costs {p} euros and is paid.")
        if paid
        else ("{n} bought a {i} for {p} euros and did not pay.", "The {i} of {n} costs {p} euros and is not paid.")
    )
    return _ask(rng, sentences, n=name, i=item, p=price), {"name": name, "item": item, "price": price, "paid": paid}


def _meeting(rng: Random) -> tuple[str, dict[str, object]]:
    name, day, city = rng.choice(NAMES), rng.choice(DAYS), rng.choice(CITIES)
    sentences = ("On {d} {n} travels to {c}.", "{n} will be in {c} on {d}.", "Meet {n} in {c} on {d}.")
    return _ask(rng, sentences, n=name, d=day, c=city), {"day": day, "name": name, "city": city}


def _json(rng: Random) -> Item:
    sentence, fields = rng.choice((_person, _purchase, _meeting))(rng)
    phrasings = (
        "Extract {f} as JSON: {s}",
        "Return JSON with {f}. {s}",
        "Give {f} of this sentence as JSON: {s}",
        "{s}\nJSON with {f}:",
    )
    return Item(sentence, _ask(rng, phrasings, s=sentence, f=", ".join(fields)), compact_json(fields))


def _bullets(words: list[str]) -> str:
    return "\n".join(f"- {word}" for word in words)


#: (phrasings, what the rule does to the words)
_RULES: Final[tuple[tuple[tuple[str, ...], Callable[[list[str]], str]], ...]] = (
    (("Write in upper case: {w}", "In capital letters: {w}"), lambda words: " ".join(words).upper()),
    (("Write as a bullet list: {w}", "Make a bullet list of {w}"), _bullets),
    (("Put in square brackets: {w}", "Wrap in brackets: {w}"), lambda words: f"[{' '.join(words)}]"),
    (("Join with hyphens: {w}", "Put hyphens between: {w}"), lambda words: "-".join(words)),
    (("Put in quotes: {w}", "Wrap in quotation marks: {w}"), lambda words: f'"{" ".join(words)}"'),
    (
        ("Number the words: {w}", "Make a numbered list of {w}"),
        lambda words: "\n".join(f"{i}. {w}" for i, w in enumerate(words, 1)),
    ),
)


def _format(rng: Random) -> Item:
    words = rng.sample(WORDS, rng.randint(2, 4))
    phrasings, apply = rng.choice(_RULES)
    return Item(" ".join(words), _ask(rng, phrasings, w=" ".join(words)), apply(words))


def _code(rng: Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXZ") for _ in range(2))
    digits = rng.choice((4, 5))
    return f"{letters}-{rng.randrange(10 ** (digits - 1), 10**digits)}"


def _find_code(rng: Random) -> Item:
    code, name, product = _code(rng), rng.choice(NAMES), rng.choice(PRODUCTS)
    sentences = (
        "The {p} of {n} has the code {c}.",
        "{n} called about {c}, the {p} for {y} euros.",
        "Please check {c} for {n} in room {x}.",
        "Parcel {c} with {x} books arrived on {d}.",
        "My order {c} for the {p} was made on {d}.",
        "{n} paid {y} euros for number {c} last {d}.",
        "I bought a {p} on {d}, number {c}, and it cost {y} euros.",
        "Hello, this is {n}. I am writing about {c}. Call me at {x} {y} {z}.",
    )
    numbers = {"x": rng.randint(2, 999), "y": rng.randint(10, 99), "z": rng.randint(100, 999)}
    sentence = _ask(rng, sentences, c=code, n=name, p=product, d=rng.choice(DAYS), **numbers)
    phrasings = (
        "Find the code: {s}",
        "Which code is in this text? {s}",
        "Extract the code. {s}",
        "{s}\nWhat is the code?",
    )
    return Item(sentence, _ask(rng, phrasings, s=sentence), code)


def _classify(rng: Random) -> Item:
    kind = rng.choice(tuple(KINDS))
    word = rng.choice(KINDS[kind])
    phrasings = (
        "What kind of thing is {w}?",
        "Classify the word: {w}",
        "Which group does {w} belong to?",
        "Category of {w}?",
    )
    return Item(word, _ask(rng, phrasings, w=word), kind)


def _sentiment(rng: Random) -> Item:
    good = rng.random() < 0.5
    first, second = rng.sample(GOOD if good else BAD, 2)
    product, name = rng.choice(PRODUCTS), rng.choice(NAMES)
    reviews = (
        "the {p} is {a} and {b}",
        "{n} says the {p} is {a}, really {b}",
        "what a {a} {p}, so {b}",
        "{a} service, and the {p} was {b}",
    )
    review = _ask(rng, reviews, p=product, n=name, a=first, b=second)
    phrasings = (
        "Is this review positive or negative? {r}",
        "Sentiment: {r}",
        "Good or bad opinion? {r}",
        "Rate the mood: {r}",
    )
    return Item(review, _ask(rng, phrasings, r=review), "positive" if good else "negative")


def _topic(rng: Random) -> Item:
    topic = rng.choice(tuple(TOPICS))
    text = rng.choice(TOPICS[topic]).format(p=rng.choice(PRODUCTS), n=rng.choice(NAMES))
    ending = rng.choice(
        ("", " since " + rng.choice(DAYS), " and " + rng.choice(NAMES) + " knows", ", says " + rng.choice(NAMES))
    )
    phrasings = (
        "What is this message about? {m}",
        "Topic: {m}",
        "Give the topic of this text. {m}",
        "{m}\nName the topic.",
    )
    return Item(text + ending, _ask(rng, phrasings, m=text + ending), topic)


SKILLS: Final[tuple[Skill, ...]] = (
    Skill("addition", _addition, share=2.5),
    Skill("sorting", _sorting, share=1.2),
    Skill("maximum", _maximum),
    Skill("copying", _copying),
    Skill("reversing", _reversing),
    Skill("lookup", _lookup, share=1.5),
    Skill("units", _units),
    Skill("facts", _facts, memorised=True),
    Skill("json", _json),
    Skill("format", _format),
    Skill("find_code", _find_code),
    Skill("classify", _classify, memorised=True, share=0.8),
    Skill("sentiment", _sentiment, share=0.6),
    Skill("topic", _topic, share=0.6),
    Skill("prices", _prices, share=0.0),  # the skills without a share come in a later stage
    Skill("row", _row, share=0.0),
    Skill("mail", lambda rng: Item(*mail(rng)), share=0.0),
)


def is_held_out(skill: Skill, key: str) -> bool:
    """Whether this content belongs to the held-out split (never true for a memorised table)."""
    return not skill.memorised and hashlib.sha256(f"{skill.name}|{key}".encode()).digest()[0] < HELD_OUT_BELOW


def draw(skill: Skill, rng: Random, split: Split) -> Item:
    """One item of the split, by drawing again until its content falls there."""
    while True:
        item = skill.make(rng)
        if skill.memorised or is_held_out(skill, item.key) == (split == "held-out"):
            return item


def rows(split: Split, per_skill: int, seed: int, without: Collection[str] = ()) -> list[Row]:
    """`per_skill` rows of each skill with different questions, none in `without`, skill after skill; the same seed
    gives the same rows."""
    made: list[Row] = []
    for skill in SKILLS:
        rng = Random(
            f"{seed}|{split}|{skill.name}"
        )  # a text seed: stable across Python builds, and skills stay independent
        seen: dict[str, Item] = {}
        while len(seen) < per_skill:
            item = draw(skill, rng, split)
            if item.question not in without:
                seen.setdefault(item.question, item)
        prefix = f"{skill.name}-{split}"
        made += [
            Row(id=f"{prefix}-{n:04d}", skill=skill.name, messages=turn(item)) for n, item in enumerate(seen.values())
        ]
    return made


def turn(item: Item) -> list[Message]:
    """The item as one user message and one assistant message."""
    return [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
