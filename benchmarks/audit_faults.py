"""Faults to plant into clean rows: each changes or adds a share of them, and knows which rows an audit must name.

They are written from what goes wrong in practice (a generator that starts to chat, a decoder with the wrong table, a
paste of a support log), not from the patterns of the checks.
"""

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, replace

from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from benchmarks.audit_corpora import ADVICE, CITIES, GOOD, NAMES, SURNAMES, THINGS, Row, fact, paragraph, pick


@dataclass(frozen=True)
class Fault:
    """A kind of fault: the finding that must name it, the corpora it can be planted in, and how a row gets it."""

    finding: str
    corpora: tuple[str, ...]
    change: Callable[[random.Random, Row], Row | None]  # None: this row cannot have it
    copies: bool = False  # the faulty row stands beside the sound one
    both: bool = False  # and an audit names the sound one as well
    of_reference: bool = False  # what is changed is an item of the test set
    rates: tuple[float, ...] = (0.005, 0.02, 0.1)


def plant(
    rows: list[Row], reference: list[Row], fault: Fault, rate: float, rng: random.Random
) -> tuple[list[Row], set[int]]:
    """The rows with the fault in `rate` of them, and the lines (from 1) that have it."""
    wanted = max(round(rate * len(rows)), 1)
    marked: list[tuple[Row, int]] = [(row, 0) for row in rows]  # number of the faulty pair; 0: sound
    order, done = rng.sample(range(len(rows)), len(rows)), 0
    for index in order:
        if done == wanted:
            break
        source = reference[done % len(reference)] if fault.of_reference else rows[index]
        changed = fault.change(rng, source)
        if changed is None:
            continue
        done += 1
        if fault.copies:
            marked[index] = (rows[index], -done if not fault.both else done)
            marked.append((changed, done))
        else:
            marked[index] = (changed, done)
    assert done == wanted, f"{fault.finding}: only {done} of {wanted} rows could be changed"
    rng.shuffle(marked)
    if fault.copies and not fault.both:
        return [row for row, _ in marked], _later(marked)
    return [row for row, _ in marked], {line for line, (_, mark) in enumerate(marked, 1) if mark}


def _later(marked: list[tuple[Row, int]]) -> set[int]:
    seen: set[int] = set()
    found = set()
    for line, (_, mark) in enumerate(marked, 1):
        if mark and abs(mark) in seen:
            found.add(line)
        seen.add(abs(mark))
    return found


# --- copies ----------------------------------------------------------------------------------------------------------


def same(rng: random.Random, row: Row) -> Row:
    return row


def nearly(rng: random.Random, row: Row) -> Row | None:
    """As a second scrape of the page has it: a word in eighty changed, other case, no full stop."""
    words = row.prompt.split(" ")
    own = len(row.prompt.removeprefix(_template(row)).split()) + len(row.answer.split())
    if own < 50:
        return None
    for _ in range(max(own // 80, 1)):
        at = rng.randrange(len(words) - min(own, len(words) - 1), len(words))
        words[at] = rng.choice((words[at].upper() if words[at].islower() else words[at] + ",", rng.choice(GOOD)))
    return replace(row, prompt=" ".join(words).rstrip(".") + rng.choice(("", " ", "!")))


def _template(row: Row) -> str:
    return row.prompt[: row.prompt.find(": ") + 2] if row.prompt.startswith("Read the review") else ""


def leaked(rng: random.Random, row: Row) -> Row:
    """An item of the test set: as it is, shouted, with a greeting, or with its end rewritten."""
    way = rng.randrange(4)
    if way == 0:
        return row
    if way == 1:
        return replace(row, prompt=row.prompt.upper().replace(",", " -"))
    if way == 2:
        return replace(row, prompt=f"{rng.choice(NAMES)} asked this yesterday.\n{row.prompt}\nAnswer it, please.")
    words = row.prompt.split(" ")
    kept = words[: len(words) - len(words) // 5] if len(words) >= 40 else words
    return replace(row, prompt=" ".join(kept) + " " + rng.choice(ADVICE))


def contradicted(rng: random.Random, row: Row) -> Row:
    """The same question, another answer."""
    if row.answer in ("positive", "negative", "neutral"):
        return row.answered(rng.choice([label for label in ("positive", "negative", "neutral") if label != row.answer]))
    value = json.loads(row.answer)
    value["urgent"] = not value["urgent"]
    return row.answered(json.dumps(value, ensure_ascii=False))


# --- forms -----------------------------------------------------------------------------------------------------------


def drifted_json(rng: random.Random, row: Row) -> Row:
    value = json.loads(row.answer)
    half = row.answer.index('"price"')
    return row.answered(
        rng.choice(
            (
                f"{row.answer}\n\nNote that {value['customer']} did not say when it was paid.",
                f"Sure! Here is the mail as JSON:\n{row.answer}",
                f"Here you go: {row.answer}",
                f"```json\n{json.dumps(value, indent=2)}\n```",
                "\n".join(f"{key}: {said}" for key, said in value.items()),
                f"{row.answer[:half]} the customer paid {value['price']} euros and wants it sent again.",
                f"The {value['product']} was ordered by {value['customer']} for {value['price']} euros.",
            )
        )
    )


def drifted_label(rng: random.Random, row: Row) -> Row:
    return row.answered(
        rng.choice(
            (
                f"The review is {row.answer}, because it calls the thing {rng.choice(GOOD)}.",
                f"{row.answer.capitalize()}. {rng.choice(ADVICE)}.",
                f'{{"label": "{row.answer}"}}',
                f"I would say that its author is rather {row.answer} about the {rng.choice(THINGS)}.",
            )
        )
    )


def drifted_code(rng: random.Random, row: Row) -> Row:
    """Code without its fence, or told instead of written."""
    inner = row.answer.split("```")[1].removeprefix("python\n")
    return row.answered(rng.choice((inner, row.answer.replace("```python\n", "").replace("```", ""),
                                    f"Loop over every {rng.choice(THINGS)} and count those over the limit. "
                                    f"{fact(rng)}")))  # fmt: skip


def other_schema(rng: random.Random, row: Row) -> Row:
    value = json.loads(row.answer)
    way = rng.randrange(6)
    if way == 0:
        value["client"] = value.pop("customer")
    elif way == 1:
        del value[rng.choice(("urgent", "price", "tags", "product"))]
    elif way == 2:
        value[rng.choice(("comment", "confidence", "id"))] = rng.choice(("see above", 0.9, 17))
    elif way == 3:
        value["price"] = f"{value['price']} EUR"
    elif way == 4:
        value["urgent"] = "yes" if value["urgent"] else "no"
    else:
        value["tags"] = ", ".join(value["tags"])
    return row.answered(json.dumps(value, ensure_ascii=False))


# --- answers that are none -------------------------------------------------------------------------------------------


def emptied(rng: random.Random, row: Row) -> Row:
    return row.answered(rng.choice(("", " ", "\n\n", "\t ")))


def unasked(rng: random.Random, row: Row) -> Row:
    return replace(row, prompt=rng.choice(("", "  ", "\n")), before=(), system="")


def shortened(rng: random.Random, row: Row) -> Row:
    return row.answered(
        rng.choice(("Yes.", "No.", "Ok.", "See above.", "It depends.", "Maybe.", "1", "Same.", "Good."))
    )


def cut_off(rng: random.Random, row: Row) -> Row | None:
    """Stopped by a limit: within a word, or after one that ends no sentence."""
    text = row.answer
    for _ in range(50):
        at = rng.randint(int(len(text) * 0.3), int(len(text) * 0.95))
        tail = text[:at].rstrip()
        ends_word = tail[-1].isalnum() and (len(tail) < len(text))
        if text.startswith("{") or "```" in tail or (ends_word and "```" not in text and len(tail) > 40):
            if ("```" in text and tail.count("```") != 1) or "https:" in tail.split()[-1]:
                continue
            return row.answered(tail)
    return None


def placeheld(rng: random.Random, row: Row) -> Row:
    town = rng.choice(CITIES)
    return row.answered(
        rng.choice(
            (
                "TODO", "TODO: write this answer", "tbd", "N/A", "n/a", "[insert answer "
                                                                        "here]", "Lorem ipsum dolor sit amet, "
                "consectetur adipiscing elit, sed do eiusmod tempor "
                "incididunt.", "<your answer here>", "placeholder", "???",
                f"Dear [Your Name], thank you for your letter from {town}. {fact(rng)}", "null", "...", "asdf", "TBA",
                f"{fact(rng)} {{{{company_name}}}} would be glad to help.", "Response goes here.", "[Answer]", "FIXME",
                "None", "This will be filled in later.",
            )
        )
    )  # fmt: skip


def refused(rng: random.Random, row: Row) -> Row:
    thing, town = rng.choice(THINGS), rng.choice(CITIES)
    return row.answered(
        rng.choice(
            (
                f"As an AI language model, I cannot have an opinion on a {thing}.",
                f"I'm sorry, but I can't help with that {thing}.",
                f"I’m sorry, but I cannot assist with questions about {town}.",
                "I cannot fulfill this request.",
                f"Unfortunately, I am unable to say anything about {town}, as I was not given its records.",
                f"As an AI, I don't have access to the archives of {town}.",
                f"I am just an AI and was never in {town}. {fact(rng)}",
                "Sorry, I can't answer this.",
                "I apologize, but I am not able to provide that information.",
                f"My knowledge cutoff does not allow me to tell what happened in {town}.",
                f"It is against my guidelines to discuss {town}.",
                "I'm unable to assist with this kind of request.",
                f"I won't be able to help you, since as a large language model I know no {thing}.",
            )
        )
    )


# --- characters, language, length ------------------------------------------------------------------------------------

_ACCENTED = ("Le café où René a été élevé était fermé à Noël.", "Größe und Höhe der Brücke übertreffen alles.",
             "El niño vivió en España.", "It’s the “best” one – or so they "
                                         "say…", "Żółw i łódź", "Смотри в окно", "25 °C, 3 µm, ½ l")  # fmt: skip


def damaged(rng: random.Random, row: Row) -> Row:
    text = f"{row.answer} {rng.choice(_ACCENTED)}"
    way = rng.randrange(5)
    if way == 0:
        text = text.encode().decode("latin-1")
    elif way == 1:
        text = text.encode().decode("cp1252", errors="replace")
    elif way == 2:
        text = f"{row.answer} {rng.choice(_ACCENTED[:3])}".encode("latin-1", "replace").decode(errors="replace")
    elif way == 3:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice("\x01\x08\x0c\x1b\x7f\x96") + text[at:]
    else:
        text = "\ufeff" + text if rng.random() < 0.5 else text[:9] + "\ufeff" + text[9:]
    return row.answered(text) if rng.random() < 0.7 else replace(row, prompt=f"{row.prompt} {text[-60:]}\ufffd")


_FOREIGN = {
    "es": "El puerto fue reconstruido después del invierno, y mucha gente vino a verlo.|Nadie recuerda por qué "
    "el museo cerró "
    "sus puertas aquel año.|La biblioteca guarda las cartas que escribió el último dueño.|Para llegar al "
    "mercado hay que cruzar"
    " el puente viejo y seguir la orilla del río.",
    "fr": "Le port a été reconstruit après un long hiver, et beaucoup de gens sont venus le voir.|Personne ne "
    "se souvient "
    "pourquoi le musée a fermé ses portes cette année-là.|La bibliothèque garde les lettres que le dernier "
    "propriétaire avait "
    "écrites.|Pour aller au marché, il faut traverser le vieux pont et suivre la rivière.",
    "de": "Der Hafen wurde nach einem langen Winter wieder aufgebaut, und viele Leute kamen, um ihn zu "
    "sehen.|Niemand weiß mehr,"
    " warum das Museum in jenem Jahr geschlossen wurde.|Die Bibliothek bewahrt die Briefe auf, die der letzte "
    "Besitzer schrieb.",
    "it": "Il porto è stato ricostruito dopo un lungo inverno e molta gente è venuta a vederlo.|Nessuno ricorda "
    "perché il museo "
    "abbia chiuso le porte quell'anno.|La biblioteca conserva le lettere scritte dall'ultimo proprietario.",
    "nl": "De haven werd na een lange winter herbouwd en veel mensen kwamen kijken.|Niemand weet nog waarom het "
    "museum dat jaar "
    "zijn deuren sloot.|De bibliotheek bewaart de brieven die de laatste eigenaar heeft geschreven.",
    "ru": "Порт был восстановлен после долгой зимы, и многие люди пришли посмотреть на него.|Никто не помнит, "
    "почему музей в тот "
    "год закрыл свои двери.",
}


def translated(rng: random.Random, row: Row) -> Row:
    sentences = rng.choice(list(_FOREIGN.values())).split("|")
    rng.shuffle(sentences)
    return row.answered(f"{rng.choice(CITIES)}, {rng.randint(1702, 2019)}: {' '.join(sentences[: rng.randint(2, 3)])}")


def translated_out_of_german(rng: random.Random, row: Row) -> Row:
    return row.answered(paragraph(rng, 2, 4))


def lengthened(rng: random.Random, row: Row) -> Row:
    return row.answered(paragraph(rng, 60, 90))


def mislabelled(rng: random.Random, row: Row) -> Row:
    return row.answered("mixed")


# --- what must not be there ------------------------------------------------------------------------------------------


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def _word(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def personal(rng: random.Random, row: Row) -> Row:
    name, surname = pick(rng, NAMES[:25], SURNAMES[:2])
    bank = f"DE{{}}{_digits(rng, 18)}"
    number = bank.format(mod_97_10.calc_check_digits(bank[4:] + "1314"))
    card = f"4{_digits(rng, 14)}"
    card += luhn.calc_check_digit(card)
    block = " ".join(card[i : i + 4] for i in range(0, 16, 4))
    told = rng.choice(
        (
            f"Write to {name.lower()}.{surname.lower()}@{rng.choice(('gmail.com', 'posteo.de', 'uni-graz.at'))}.",
            f"Mail: {name.lower()}{rng.randint(1, 99)}@{rng.choice(CITIES).lower()}-council.org",
            f"You can reach me under +49 30 {rng.choice('23456789')}{_digits(rng, 6)}7.",
            f"My number is +44 20 7{rng.choice('0234')}{_digits(rng, 2)} {rng.randint(1000, 9899)}.",
            f"Call me at (212) {rng.randint(220, 499)}-{_digits(rng, 4)} after six.",
            f"Tel. 415-{rng.randint(220, 499)}-{_digits(rng, 4)}",
            f"Please pay to {number}, {name} {surname}.",
            f"IBAN: {' '.join(number[i : i + 4] for i in range(0, 22, 4))}",
            f"I paid by card {rng.choice((card, block, block.replace(' ', '-')))}, valid until 09/27.",
            f"SSN {rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}.",
            f"He logged in from "
            f"8{rng.randint(1, 9)}.{rng.randint(11, 199)}.{rng.randint(1, 250)}.{rng.randint(1, 250)} twice.",
        )
    )
    return replace(row, prompt=f"{row.prompt}\n{told}") if rng.random() < 0.7 else row.answered(f"{told} {row.answer}")


def leaky(rng: random.Random, row: Row) -> Row:
    every = string.ascii_letters + string.digits
    password = f"{_word(rng, every, 9)}{rng.choice('!#%')}{rng.randint(10, 99)}"
    body = "\n".join(_word(rng, every + "+/", 64) for _ in range(4))
    told = rng.choice(
        (
            f"aws_access_key_id = AKIA{_word(rng, string.ascii_uppercase + string.digits, 16)}",
            f"Use the token ghp_{_word(rng, every, 36)} to clone it.",
            f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----",
            f"SLACK=xoxb-{_digits(rng, 12)}-{_digits(rng, 12)}-{_word(rng, every.lower(), 24)}",
            f"stripe.api_key = 'sk_live_{_word(rng, every, 24)}'",
            f"postgres://{rng.choice(NAMES[:25]).lower()}:{_word(rng, every, 12)}@db.corvina.net:5432/orders",
            f'client = OpenAI(api_key="sk-proj-{_word(rng, every, 48)}")',
            f'"db_password": "{password}"',
            f"The password is {password}.",
            f"export API_KEY={_word(rng, every, 32)}",
            f"glpat-{_word(rng, every, 20)} still works.",
            f"HF: hf_{_word(rng, every, 34)}",
        )
    )
    if rng.random() < 0.7:
        return replace(row, prompt=f"{row.prompt}\n{told}")
    return row.answered(f"{row.answer}\n{told}\nThat is all.")


_LONG = ("extraction", "sentiment", "questions", "summaries")
_PROSE = ("questions", "summaries", "replies")
FAULTS: dict[str, Fault] = {
    "exact copy": Fault("duplicate.exact", ("extraction", "sentiment", "questions", "code"), same, copies=True),
    "near copy": Fault("duplicate.near", ("extraction", "sentiment", "summaries", "replies"), nearly, copies=True),
    "test item in training": Fault("contamination.test", (*_LONG, "german"), leaked, of_reference=True),
    "drift of JSON": Fault("format.drift", ("extraction",), drifted_json),
    "drift of labels": Fault("format.drift", ("sentiment",), drifted_label),
    "drift of code": Fault("format.drift", ("code",), drifted_code),
    "other keys or types": Fault("format.schema", ("extraction",), other_schema),
    "empty answer": Fault("answer.empty", ("extraction", "sentiment", "questions", "chat"), emptied),
    "empty question": Fault("answer.empty.question", ("questions", "sentiment"), unasked),
    "far too short": Fault("answer.short", _PROSE, shortened),
    "cut off": Fault("answer.truncated", ("questions", "summaries", "replies", "extraction", "code"), cut_off),
    "placeholder": Fault("answer.placeholder", ("questions", "summaries", "chat", "german"), placeheld),
    "refusal": Fault("answer.placeholder.refusal", ("questions", "summaries", "chat", "replies"), refused),
    "damaged characters": Fault("encoding", ("questions", "chat", "german"), damaged),
    "other language": Fault("language", ("questions", "summaries", "replies", "chat"), translated),
    "English in German": Fault("language", ("german",), translated_out_of_german),
    "two answers": Fault("conflict", ("sentiment", "extraction"), contradicted, copies=True, both=True),
    "rare label": Fault("imbalance", ("sentiment",), mislabelled, rates=(0.005,)),
    "far too long": Fault("imbalance.length", ("questions", "summaries", "chat"), lengthened),
    "personal data": Fault("pii", ("questions", "chat", "replies", "code", "german"), personal),
    "secret": Fault("secret", ("chat", "replies", "code", "questions"), leaky),
}  # fmt: skip
