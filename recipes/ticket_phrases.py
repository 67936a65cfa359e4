"""What customers write: the phrases that support tickets are put together from, by the label that each one decides.

Slots: `{p}` product, `{d}` weekday, `{n}` a first name, `{e}` an amount in euros, `{k}` a small count.
"""

from typing import Final

#: category -> the sentences that state the problem. Exactly one of them is in every ticket.
ISSUES: Final[dict[str, tuple[str, ...]]] = {
    "billing": (
        "I was charged twice for the {p}",
        "The invoice for the {p} shows {e} euros instead of the price on your website",
        "You took {e} euros from my bank card without asking me",
        "My discount was not applied to the bill for the {p}",
        "I need a corrected invoice with my company name on it",
        "My payment of {e} euros for the {p} was taken two times",
        "The amount on my last bill is {e} euros too high",
        "I still get a payment reminder although I paid for the {p} on {d}",
        "Please send me a receipt for the {e} euros that I paid",
        "I cannot pay for the {p} because my credit card is declined",
    ),
    "delivery": (
        "The {p} has still not arrived",
        "My parcel was left at the wrong address",
        "Tracking has shown no news about my package since {d}",
        "The courier says that he delivered the {p} but I got nothing",
        "I am waiting for the {p} that should have come on {d}",
        "Where is my parcel with the {p}",
        "Only {k} of the boxes were delivered on {d}",
        "The shipping of the {p} is {k} days late",
        "Please deliver the {p} to my neighbour {n}",
        "Can the courier bring the package on {d} in the evening",
    ),
    "returns": (
        "I want to send the {p} back",
        "I returned the {p} on {d} and have not got my refund",
        "The {p} is the wrong color and I would like to exchange it",
        "Please send me a return label for the {p}",
        "I changed my mind and do not want to keep the {p}",
        "The {p} is too small and I need a bigger size in exchange",
        "You sent me a {p} that I never ordered, how can I give it back",
        "How many days do I have to return the {p}",
        "I sent back {k} items and the refund is missing",
        "Please pick up the {p}, I do not need it any more",
    ),
    "account": (
        "I cannot log in with my password",
        "Please delete my account and all my data",
        "I want to change the email address in my profile",
        "The password reset link does not work for me",
        "My account has been locked since {d}",
        "Somebody changed the user name of my profile",
        "Please remove me from the newsletter",
        "I have two accounts and want to merge them",
        "I did not get the code to confirm my login",
        "How do I change the phone number in my account",
    ),
    "technical": (
        "The {p} does not turn on",
        "The {p} stopped working after {k} days",
        "There is an error on the screen of the {p}",
        "Your app crashes every time I open it",
        "The {p} makes a strange noise and gets very hot",
        "After the last update the {p} does not connect",
        "The {p} switches off after {k} minutes",
        "The {p} is broken and the light is blinking red",
        "Your website shows an error when I click on the {p}",
        "The battery of the {p} is empty after {k} minutes",
    ),
    "product": (
        "Does the {p} work with batteries",
        "I would like to know how big the {p} is",
        "Is the {p} available in blue",
        "Which {p} is the best one for a family",
        "How long is the warranty of the {p}",
        "What material is the {p} made of",
        "When will the {p} be in stock again",
        "Is the {p} good for small rooms",
        "Can I buy spare parts for the {p}",
        "What is the difference between the two models of the {p}",
    ),
}

#: priority -> cues. A ticket without any cue is "normal"; the lines under "normal" say nothing about haste.
PRIORITIES: Final[dict[str, tuple[str, ...]]] = {
    "urgent": (
        "This is urgent!",
        "I need this solved today.",
        "It is an emergency, call me at once.",
        "Please act immediately!",
        "This cannot wait until tomorrow.",
        "URGENT!",
        "I must have a solution in the next two hours.",
    ),
    "high": (
        "Please answer as soon as possible.",
        "I am losing my patience.",
        "This is the third time that I write.",
        "I have been waiting for weeks.",
        "Please hurry up.",
        "I am very angry about this.",
        "It is important for me to have it this week.",
    ),
    "low": (
        "There is no rush.",
        "Take your time.",
        "It is not important, just a small thing.",
        "Whenever you have time is fine.",
        "No hurry at all.",
        "It can wait until next month.",
    ),
    "normal": (
        "",
        "",
        "Thank you for your help.",
        "I hope you can help me.",
        "Please take care of it.",
        "I count on your support.",
    ),
}

#: reply_needed -> closing lines. Without a line, the customer expects an answer.
REPLIES: Final[dict[bool, tuple[str, ...]]] = {
    False: (
        "No need to reply.",
        "You do not have to answer this mail.",
        "No answer needed.",
        "This is just for your information.",
        "Please do not write back.",
    ),
    True: (
        "",
        "",
        "Please let me know.",
        "I look forward to your answer.",
        "Please write back to me.",
        "What should I do now?",
        "Can you tell me more?",
    ),
}

#: Ways to name the order ({o}); the label is the number as written.
ORDER_MENTIONS: Final[tuple[str, ...]] = (
    "Order number: {o}.",
    "My order is {o}.",
    "It is about order {o}.",
    "The order number is {o}.",
    "Order {o}.",
    "I ordered it on {d} ({o}).",
    "You will find it under {o}.",
    "Reference {o}, ordered on {d}.",
)

#: Lines with numbers that are not an order number.
DISTRACTORS: Final[tuple[str, ...]] = (
    "My phone number is {a} {b}.",
    "My customer number is {b}.",
    "I live at {k} Garden Street.",
    "I paid {e} euros for it.",
    "You can call me at {a} {b} after {k} pm.",
    "The model is X{a}.",
    "I bought it {k} weeks ago.",
    "My zip code is {b}.",
)

#: Lines that add nothing, some of them in the words of another category.
CONTEXTS: Final[tuple[str, ...]] = (
    "I have been a customer of yours for {k} years.",
    "My last delivery was perfect.",
    "I found your address on your website.",
    "My friend {n} told me about your shop.",
    "I like your shop very much.",
    "I am writing for my mother {n}.",
    "I already talked to {n} from your team.",
    "We use it every day at home.",
    "My old {p} from you is still great.",
    "It is a present for {n}.",
)

GREETINGS: Final[tuple[str, ...]] = (
    "Hello,",
    "Hi,",
    "Hi there,",
    "Dear support team,",
    "Good morning,",
    "Dear Sir or Madam,",
    "Hello {n},",
    "Hey,",
    "To the service team:",
    "",
)
SIGNATURES: Final[tuple[str, ...]] = (
    "Best regards, {n}",
    "Thanks, {n}",
    "Kind regards\n{n}",
    "{n}",
    "Regards, {n} from {c}",
    "Bye, {n}",
    "Sincerely, {n}",
    "",
)
ENDINGS: Final[tuple[str, ...]] = (".", ".", ".", "!", "...", "")
QUESTION_ENDINGS: Final[tuple[str, ...]] = ("?", "?", "?", "??", "")
#: An issue that starts with one of these is a question.
QUESTION_WORDS: Final[tuple[str, ...]] = ("Can", "Does", "How", "Is", "What", "When", "Where", "Which")

#: word -> how people misspell it. One to one, so that a reader (and the test) can undo it.
TYPOS: Final[dict[str, str]] = {
    "please": "pleese",
    "because": "becuase",
    "address": "adress",
    "the": "teh",
    "waiting": "waitng",
    "account": "acount",
    "package": "pacakge",
    "received": "recieved",
    "invoice": "invioce",
    "password": "pasword",
    "with": "wiht",
    "return": "retrun",
    "order": "oder",
    "answer": "anwser",
    "delivered": "deliverd",
    "and": "adn",
    "working": "workng",
    "available": "availble",
    "website": "websit",
    "refund": "refnd",
    "number": "numbr",
    "thank": "thnak",
    "not": "nto",
    "cannot": "canot",
    "email": "emial",
    "again": "agian",
    "customer": "custmer",
    "urgent": "urgnet",
    "information": "informaton",
}
