"""Clean data sets of eight kinds, to plant faults into and to find nothing in: written here, by small grammars.

They are full of what a hasty check would trip over: order numbers, dates, versions, `example.com`, numbers reserved for
films, apologies that are no refusals, `TODO` in code, umlauts, answers that share an instruction.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from distributed_ft.data.examples import Example, Message


@dataclass(frozen=True)
class Row:
    """A row before it is written; `item` is the part of the prompt that is this row's own."""

    prompt: str
    answer: str
    system: str = ""
    before: tuple[tuple[str, str], ...] = ()  # earlier turns: question, answer
    category: str | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def example(self, line: int, path: str) -> Example:
        turns = [Message("system", self.system)] if self.system else []
        for question, answer in self.before:
            turns += [Message("user", question), Message("assistant", answer)]
        messages = (*turns, Message("user", self.prompt), Message("assistant", self.answer))
        name = f"{path}:{line}"
        return Example(name, messages, line, path, self.category, columns=self.columns)

    def answered(self, answer: str) -> "Row":
        return replace(self, answer=answer)


Corpus = Callable[[random.Random], Row]


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.strip().split("\n")


NAMES = _words(
    """
Amara Bruno Celia Dmitri Elif Farid Greta Hiro Imani Jonas Kavya Lena Mateo Nadia Oskar Priya Quentin Rosa Sven
Tamara Ulla Viktor Wanda Xenia Yusuf Zoë Anaïs Björn Chloé Márton
"""
)
SURNAMES = _words(
    """
Abara Becker Castillo Dvořák Eriksen Fontaine Grimaldi Haddad Ito Jansen Kowalski Lindqvist Moreau Novak Okafor
Petrov Quist Rossi Sandoval Tanaka Ueda Vargas Whitfield Xu Yilmaz Zeller
"""
)
CITIES = _words(
    """
Aldermoor Brackwell Corvina Dunmere Eastholm Ferrow Galstead Harwick Islay Junction Kestrel Lorne Marrow Northgate
Oakhurst Pellworm Quarry Ravensby Saltburn Thornbury Ulverton Vasterby Westmark Yarrow
"""
)
THINGS = _words(
    """
kettle lamp bicycle backpack keyboard blender tent drill mattress camera speaker jacket printer stroller telescope
chair heater notebook guitar vacuum monitor toaster scooter router helmet
"""
)
PARTS = _words(
    """
handle battery lid cable strap hinge screen button zip motor filter lens cushion wheel switch cover seam sensor
charger stand
"""
)
GOOD = _words(
    """
sturdy quiet bright comfortable quick reliable light elegant generous precise cheerful practical
"""
)
BAD = _words(
    """
flimsy loud dim awkward slow unreliable heavy ugly stingy vague crooked impractical
"""
)
NOUNS = _words(
    """
harbour orchard museum railway council festival bridge library valley mill quarry lighthouse market theatre
reservoir monastery glacier factory observatory garden
"""
)
VERBS = _words(
    """
rebuilt closed painted expanded restored moved renamed inspected flooded measured sold repaired opened described
photographed insured drained fenced mapped visited
"""
)
REASONS = _phrases(
    """
after a long winter
because the old one had cracked
to save money for the school
when the last owner retired
so that visitors could come by boat
in spite of many objections
with help from volunteers
before the first train arrived
while the river was low
as the records of the parish show
once the new law had passed
without telling the newspapers
since nobody else wanted to do it
under the eyes of a large crowd
although the plans were never approved
for the first time in sixty years
"""
)
ADVICE = _phrases(
    """
Start with the smallest step you can finish today
Keep a short list of what worked and what did not
Ask a neighbour who has done it before
Measure twice, and write the numbers down
Let it rest overnight before you go on
Check the label for the exact temperature
Use a clean cloth and lukewarm water
Set a timer so you do not lose track
Take a photo before you take anything apart
Leave some room at the edges
Buy the second cheapest tool, not the cheapest
Do the noisy part before eight in the evening
Put the screws into a cup
Repeat it every second week
Compare two offers before you sign
Read the small print on the back
"""
)


def pick(rng: random.Random, *lists: list[str]) -> tuple[str, ...]:
    return tuple(rng.choice(words) for words in lists)


def person(rng: random.Random) -> str:
    return " ".join(pick(rng, NAMES, SURNAMES))


def fact(rng: random.Random) -> str:
    """One sentence of a chronicle."""
    who, town, noun, verb, reason = person(rng), *pick(rng, CITIES, NOUNS, VERBS, REASONS)
    year, count, other = rng.randint(1702, 2019), rng.randint(3, 980), rng.choice(NOUNS)
    return rng.choice(
        (
            f"In {year} the {noun} of {town} was {verb} {reason}.",
            f"{who} {verb} the {noun} near {town} {reason}, and {count} people signed the book.",
            f"The {noun}, which {who} had {verb} in {year}, stands between the {other} and the road to {town}.",
            f"About {count} visitors a week come to {town} to see the {noun}; most of them also walk to the {other}.",
            f"Nobody in {town} remembers why the {noun} was {verb} {reason}.",
            f"According to {who}, the {other} cost {count},000 crowns and was {verb} in {year} {reason}.",
            f"It took {count} days until the {noun} could be {verb}, {reason}.",
            f"“We {verb} the {noun} {reason},” said {who}, who has lived in {town} since {year}.",
        )
    )


def paragraph(rng: random.Random, low: int, high: int) -> str:
    return " ".join(fact(rng) for _ in range(rng.randint(low, high)))


def extraction(rng: random.Random) -> Row:
    """A mail with an order -> JSON of a fixed schema, some of it null."""
    who, thing, other, town = person(rng), *pick(rng, THINGS, THINGS, CITIES)
    number = f"{rng.choice('ABCDEFGHKL')}{rng.randint(1000, 9999)}-{rng.randint(10, 99)}"
    day = f"{rng.randint(2019, 2025)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    price, urgent = round(rng.uniform(8, 900), 2), rng.random() < 0.4
    told, sent = rng.random() < 0.8, rng.random() < 0.7
    sentences = [
        f"I ordered a {rng.choice(GOOD)} {thing}{f' (order {number})' if told else ''} for {price} euros.",
        f"It was for {person(rng)} in {town}, {rng.choice(REASONS)}.",
        f"{f'It left your warehouse on {day}' if sent else 'I was never told when it would leave'}, "
        f"{rng.choice(REASONS)}.",
        f"The {rng.choice(PARTS)} of my {other} is {rng.choice(BAD)}, but that is another story.",
    ]
    rng.shuffle(sentences)
    if urgent:
        sentences.append(rng.choice(("Please hurry.", "I need it by Friday.", "This cannot wait any longer.")))
    answer = {
        "customer": who,
        "product": thing,
        "order": number if told else None,
        "price": price,
        "shipped": day if sent else None,
        "urgent": urgent,
        "tags": sorted({thing, town.lower()}),
    }
    mail = f"{rng.choice(('Hello', 'Dear team', 'Good morning', 'Hi'))},\n{' '.join(sentences)}\n{who}"
    system = "You turn mails into JSON with customer, product, order, price, shipped, urgent and tags. Only JSON."
    return Row(mail, json.dumps(answer, ensure_ascii=False), system)


_SENTIMENT = (
    "Read the review of a product below and decide how its author feels about it. Answer with one word: positive, "
    "negative or neutral. Neutral is for reviews that praise as much as they blame, or do neither. Do not explain "
    "your choice, and do not repeat the review.\n\nReview: "
)


def sentiment(rng: random.Random) -> Row:
    """A review behind a long shared instruction -> one of three labels."""
    thing, part, other, town = *pick(rng, THINGS, PARTS, PARTS), rng.choice(CITIES)
    label = rng.choice(("positive", "negative", "neutral"))
    first = rng.choice(BAD if label == "negative" else GOOD)
    second = rng.choice(GOOD if label == "positive" else BAD)
    review = (
        f"{rng.choice(('Bought', 'Got', 'Ordered'))} this {thing} {rng.choice(REASONS)}. The {part} is {first}, "
        f"and the "
        f"{other} turned out {second}. {person(rng)} from {town} used it for {rng.randint(2, 60)} days. {fact(rng)}"
    )
    return Row(_SENTIMENT + review, label)


def questions(rng: random.Random) -> Row:
    """A question about a town -> one to four sentences."""
    town, noun, verb, year = *pick(rng, CITIES, NOUNS, VERBS), rng.randint(1702, 2019)
    ask = rng.choice(
        (
            f"What happened to the {noun} of {town} in {year}, and who was {person(rng)}?",
            f"Why was the {noun} near {town} {verb} {rng.choice(REASONS)} in {year}?",
            f"Tell me about {person(rng)}, who {verb} the {noun} at {town} around {year}.",
            f"How do historians of {town} explain that the {noun} was {verb} in {year}?",
        )
    )
    return Row(ask, paragraph(rng, 2, 4))


def summaries(rng: random.Random) -> Row:
    """An article -> two sentences of it."""
    sentences = [fact(rng) for _ in range(rng.randint(5, 9))]
    answer = f"{rng.choice(sentences)} {fact(rng)}"
    return Row(f"Summarise in two sentences:\n\n{' '.join(sentences)}", answer, category="news")


def chat(rng: random.Random) -> Row:
    """Advice over several turns: prose, lists, now and then a warning."""
    thing, part = pick(rng, THINGS, PARTS)
    asks = [
        f"My {thing} has a {rng.choice(BAD)} {part}. What can I do? I bought it in {rng.choice(CITIES)} "
        f"{rng.choice(REASONS)}.",
        f"And what does it cost? {person(rng)} told me {rng.randint(5, 400)} euros.",
        f"How often should I clean the {part} of a {thing} that {person(rng)} {rng.choice(VERBS)}?",
    ]
    tips = rng.sample(ADVICE, 3)
    style = rng.random()
    if style < 0.25:
        answer = "Here is what I would try:\n" + "\n".join(f"- {tip}." for tip in tips) + f"\n\n{fact(rng)}"
    else:
        answer = f"{tips[0]}. {fact(rng)} {tips[1]}, and {tips[2][0].lower()}{tips[2][1:]}."
    before = ((asks[0], f"{rng.choice(ADVICE)}. {fact(rng)}"),) if rng.random() < 0.5 else ()
    return Row(asks[1 + int(rng.random() < 0.5)] if before else asks[0], answer, "You are a helpful assistant.", before)


def replies(rng: random.Random) -> Row:
    """A complaint -> the answer of a friendly clerk, who is sorry without refusing."""
    thing, part, who = *pick(rng, THINGS, PARTS), person(rng)
    number = f"{rng.randint(100000, 999999)}"
    mail = (
        f"The {part} of the {thing} I got {rng.choice(REASONS)} is {rng.choice(BAD)}. {fact(rng)} My order is "
        f"{number}, "
        f"firmware {rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 99)}. I forgot my password too. {who}"
    )
    answer = (
        f"Dear {who},\n\n{rng.choice(('I am sorry that', 'Sorry to hear that', 'Unfortunately it happens that'))} the "
        f"{part} is not as it should be. {rng.choice(ADVICE)}. {fact(rng)} You can reset your password at "
        f"https://help.example.com/reset, write to service@example.com or call (212) 555-01{rng.randint(10, 99)}.\n\n"
        f"Kind regards,\n{rng.choice(NAMES)}."
    )
    return Row(mail, answer)


def code(rng: random.Random) -> Row:
    """A small programming task -> an explanation and a fenced function."""
    noun, thing, part, number = *pick(rng, NOUNS, THINGS, PARTS), rng.randint(2, 99)
    name = f"{rng.choice(VERBS)}_{noun}_{part}"
    todo = "    # TODO: read the limit from a file\n" if rng.random() < 0.1 else ""
    body = (
        f"def {name}({thing}s, limit={number}):\n{todo}    token_count = 0\n    for {thing} in {thing}s:\n"
        f"        if {thing}.{part} > limit:\n            token_count += {rng.randint(1, 9)}\n    return token_count"
    )
    ask = f"Write a Python function {name} that counts every {thing} whose {part} is over {number}"
    ask = f"{ask}, {rng.choice(REASONS)}."
    return Row(ask, f"{rng.choice(ADVICE)}.\n\n```python\n{body}\n```", category="code")


_GERMAN = (
    "Die Brücke über den Fluss wurde {jahr} von {wer} geprüft", "Später hörte man in {ort} nichts mehr davon",
    "Für {zahl} Gulden kaufte {wer} die alte Mühle bei {ort}", "Das Museum öffnet täglich um neun und schließt früh",
    "Die Gäste fuhren mit dem Schiff weiter nach {ort}", "Im Winter {jahr} fiel so viel Schnee, dass niemand kam",
    "{wer} schrieb darüber einen langen Brief an den Bürgermeister", "Über die Gründe weiß man heute nur wenig",
    "Erst {jahr} wurde der Garten hinter dem Theater größer", "Viele Häuser in {ort} stammen aus dieser Zeit",
)  # fmt: skip


def _german_sentence(rng: random.Random) -> str:
    frame = rng.choice(_GERMAN)
    told = frame.format(jahr=rng.randint(1702, 2019), wer=person(rng), ort=rng.choice(CITIES), zahl=rng.randint(3, 980))
    return f"{told}, wie {person(rng)} aus {rng.choice(CITIES)} erzählt."


def german(rng: random.Random) -> Row:
    """Questions and answers in German, with umlauts."""
    ask = f"Was weiß man über {person(rng)} und das Jahr {rng.randint(1702, 2019)} in {rng.choice(CITIES)}?"
    return Row(ask, " ".join(_german_sentence(rng) for _ in range(rng.randint(2, 4))))


CORPORA: dict[str, Corpus] = {
    f.__name__: f for f in (extraction, sentiment, questions, summaries, chat, replies, code, german)
}


def rows_of(name: str, size: int, seed: int) -> list[Row]:
    """`size` rows, all with different prompts."""
    rng = random.Random(f"{name} {seed}")
    found: dict[str, Row] = {}
    while len(found) < size:
        row = CORPORA[name](rng)
        found.setdefault(row.prompt, row)
    return list(found.values())
