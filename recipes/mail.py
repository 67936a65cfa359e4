"""A mail of several sentences, and a question about it: what it is about, how much haste there is, whether it wants a
reply. It prepares the base for the demo's task and is close to it on purpose: the subjects are those of tickets. The
sentences are others, and so are labels and form of the answer: no ticket is answered, and untrained the base scores 0.0
on them.
"""

from random import Random
from typing import Final

from recipes.words import CITIES, DAYS, NAMES, PRODUCTS, TOPICS

#: More sentences by topic, beside those of TOPICS. Slots as in a ticket.
MORE: Final[dict[str, tuple[str, ...]]] = {
    "money": (
        "the payment for the {p} went out of my bank two times",
        "{e} euros too much were charged on my card",
        "our company needs a new invoice",
        "the receipt for {e} euros is missing",
        "i paid on {d} and still get a reminder of the bill",
        "the credit card does not work for the payment",
    ),
    "transport": (
        "no courier came on {d}",
        "the box with the {p} has not come",
        "where did the parcel of {n} go",
        "the package should be delivered on {d} in the evening",
        "only {k} parcels came, the shipping of the others is late",
        "the delivery went to a neighbour",
    ),
    "exchange": (
        "we do not want to keep the {p}, please pick it up",
        "the color of the {p} is wrong, can i exchange it",
        "i sent it back on {d} but there is no refund",
        "how do i give the {p} back",
        "we changed our mind and return the {p}",
        "the {p} is too small for {n} and goes back",
    ),
    "login": (
        "the reset link for the password does nothing",
        "the code to log in never came",
        "please remove my address from the newsletter",
        "somebody else uses the account of {n}",
        "how can i change my email in the profile",
        "we have two accounts and need only one",
    ),
    "fault": (
        "the light of the {p} is blinking red",
        "after {k} minutes the {p} switches off",
        "the battery is empty too fast",
        "the {p} does not connect any more",
        "on your website i only see an error",
        "the {p} stopped working on {d}",
    ),
    "question": (
        "what is the difference between the {p} and the old one",
        "when is the {p} in stock",
        "which {p} is good for a small family room",
        "can i buy parts for the {p}",
        "i would like to know the size of the {p}",
        "do you have the {p} in another color",
    ),
}

HASTE: Final[dict[str, tuple[str, ...]]] = {
    "now": (
        "it must happen at once",
        "we need an answer in the next hour",
        "this is an emergency here",
        "act immediately",
        "it cannot wait one more day",
        "very urgent",
    ),
    "soon": (
        "a quick answer would be good",
        "i am waiting for weeks now",
        "i write for the third time",
        "hurry up a little",
        "we are angry and lose our patience",
        "it is important this week",
    ),
    "later": (
        "there is a lot of time",
        "next month is early enough",
        "take all the time you want",
        "do not hurry",
        "it is only a small thing, not important",
    ),
    "whenever": ("", "", "", "thanks for the help", "we hope you can help", "take good care"),
}

REPLY: Final[dict[str, tuple[str, ...]]] = {
    "no": (
        "an answer is not needed",
        "you do not have to write back",
        "it is only for your information",
        "please no reply to this mail",
    ),
    "yes": ("", "", "tell me more", "what should we do", "please write back", "let us know"),
}

FILLERS: Final[tuple[str, ...]] = (
    "we buy from you for {k} years",
    "{n} works in our team in {c}",
    "the number of {n} is {a} {b}",
    "it was {e} euros",
    "the zip code of {n} is {b}",
    "{n} told me about your website",
    "our old {p} is still perfect",
    "i live in {c}",
    "it was a present from {n}",
    "the model is Z{a}",
)

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "topic": ("What is this mail about?", "Name the topic of the mail."),
    "haste": ("How much haste is there in this mail?", "When does this mail want an answer?"),
    "reply": ("Does this mail want a reply?", "Is a reply expected?"),
    "all": ("Sum up this mail: topic, haste, reply.", "Topic, haste and reply of this mail?"),
}


def mail(rng: Random) -> tuple[str, str, str]:
    """(text of the mail, question with the mail in it, answer)."""
    labels = {
        "topic": rng.choice(tuple(TOPICS)),
        "haste": rng.choice(tuple(HASTE)),
        "reply": rng.choice(tuple(REPLY)),
    }
    others = [rng.choice(HASTE[labels["haste"]]), *rng.sample(FILLERS, rng.choice((0, 1, 2, 3)))]
    rng.shuffle(others)
    lead = others[: rng.choice((0, 1, 2))]
    issue = rng.choice(TOPICS[labels["topic"]] + MORE[labels["topic"]])
    sentences = [*lead, issue, *others[len(lead) :], rng.choice(REPLY[labels["reply"]])]
    text = " ".join(_sentence(rng, line) for line in sentences if line)
    text = rng.choice(("Hello! ", "Good morning. ", "Dear {n}, ", "")).format(n=rng.choice(NAMES)) + text
    text += rng.choice(("", f" Bye, {rng.choice(NAMES)}", f"\n{rng.choice(NAMES)}"))
    kind = rng.choice(("topic", "haste", "reply", "all", "all"))
    question = rng.choice(QUESTIONS[kind])
    asked = rng.choice((f"{question}\n\n{text}", f"{question}\n\n{text}", f"{text}\n{question}"))
    return text, asked, ", ".join(labels.values()) if kind == "all" else labels[kind]


def _sentence(rng: Random, line: str) -> str:
    filled = line.format(
        p=rng.choice(PRODUCTS),
        n=rng.choice(NAMES),
        c=rng.choice(CITIES),
        d=rng.choice(DAYS),
        e=rng.randint(10, 499),
        k=rng.randint(2, 9),
        a=rng.randint(100, 999),
        b=rng.randint(10000, 999999),
    )
    return filled[0].upper() + filled[1:] + rng.choice((".", ".", "!", ""))
