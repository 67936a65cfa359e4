"""Word pools and memorised tables that the skill and ticket generators draw from.

They are data, kept apart so that the generators read as rules. The vocabulary is small on purpose: a model of about one
million parameters has to know every word well.
"""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    """A pool written as one text: easier to read and to edit than a list of quoted words."""
    return tuple(text.split())


NAMES: Final[tuple[str, ...]] = _words(
    """Adam Aisha Alice Amir Ana Anton Ben Bianca Carla Carlos Chen Clara Daniel David Diego Elena Emma Erik Eva Fatima
    Felix Fiona George Grace Hana Hugo Ines Ivan Jack James Jana Julia Karim Kate Kenji Lara Laura Leo Lina Lucas Maria
    Marco Marta Max Mei Mia Nadia Nina Noah Nora Olga Omar Oscar Paul Petra Priya Rosa Samir Sara Sofia Tariq Thomas
    Tom Uma Victor Vera Wei Yuki Zara Zoe"""
)

CITIES: Final[tuple[str, ...]] = _words(
    """Athens Berlin Bern Boston Cairo Chicago Delhi Denver Dublin Geneva Hamburg Helsinki Lagos Lima Lisbon London Lyon
    Madrid Miami Milan Munich Nairobi Oslo Oxford Paris Porto Prague Rome Seoul Sofia Sydney Tokyo Toronto Turin Vienna
    Warsaw York Zurich"""
)

PRODUCTS: Final[tuple[str, ...]] = _words(
    """lamp chair table printer phone laptop tablet camera kettle toaster blender heater router keyboard monitor speaker
    headset charger backpack jacket sweater blanket pillow mattress sofa desk mirror clock watch bicycle helmet tent
    radio drill vacuum freezer oven mixer fan scale"""
)

WORDS: Final[tuple[str, ...]] = _words(
    """apple bird book bread bridge cat cloud coat cup dog door egg fish flower forest garden glass gold green hand hat
    hill horse house island key lake leaf letter light milk moon mountain music night ocean paper pen plane rain red
    river road rock rose salt sand sea ship shoe silver sky snow song spoon star stone storm street sugar summer sun
    tea tiger tower train tree valley water wheel wind window winter wolf wood yellow"""
)

DAYS: Final[tuple[str, ...]] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

#: country -> (capital, continent, currency, main language). Asked exactly as learned: there is nothing to hold out.
COUNTRIES: Final[dict[str, tuple[str, str, str, str]]] = {
    "Argentina": ("Buenos Aires", "South America", "peso", "Spanish"),
    "Australia": ("Canberra", "Oceania", "dollar", "English"),
    "Austria": ("Vienna", "Europe", "euro", "German"),
    "Brazil": ("Brasilia", "South America", "real", "Portuguese"),
    "Canada": ("Ottawa", "North America", "dollar", "English"),
    "Chile": ("Santiago", "South America", "peso", "Spanish"),
    "China": ("Beijing", "Asia", "yuan", "Chinese"),
    "Denmark": ("Copenhagen", "Europe", "krone", "Danish"),
    "Egypt": ("Cairo", "Africa", "pound", "Arabic"),
    "Finland": ("Helsinki", "Europe", "euro", "Finnish"),
    "France": ("Paris", "Europe", "euro", "French"),
    "Germany": ("Berlin", "Europe", "euro", "German"),
    "Ghana": ("Accra", "Africa", "cedi", "English"),
    "Greece": ("Athens", "Europe", "euro", "Greek"),
    "Hungary": ("Budapest", "Europe", "forint", "Hungarian"),
    "Iceland": ("Reykjavik", "Europe", "krona", "Icelandic"),
    "India": ("New Delhi", "Asia", "rupee", "Hindi"),
    "Ireland": ("Dublin", "Europe", "euro", "English"),
    "Italy": ("Rome", "Europe", "euro", "Italian"),
    "Japan": ("Tokyo", "Asia", "yen", "Japanese"),
    "Kenya": ("Nairobi", "Africa", "shilling", "Swahili"),
    "Mexico": ("Mexico City", "North America", "peso", "Spanish"),
    "Morocco": ("Rabat", "Africa", "dirham", "Arabic"),
    "Norway": ("Oslo", "Europe", "krone", "Norwegian"),
    "Peru": ("Lima", "South America", "sol", "Spanish"),
    "Poland": ("Warsaw", "Europe", "zloty", "Polish"),
    "Portugal": ("Lisbon", "Europe", "euro", "Portuguese"),
    "Spain": ("Madrid", "Europe", "euro", "Spanish"),
    "Sweden": ("Stockholm", "Europe", "krona", "Swedish"),
    "Thailand": ("Bangkok", "Asia", "baht", "Thai"),
    "Turkey": ("Ankara", "Asia", "lira", "Turkish"),
    "Vietnam": ("Hanoi", "Asia", "dong", "Vietnamese"),
}

#: word -> kind. A memorised table as well.
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "animal": _words("dog cat horse tiger wolf fish bird cow sheep rabbit lion bear mouse duck"),
    "fruit": _words("apple pear banana cherry grape lemon mango orange peach plum melon"),
    "color": _words("red green blue yellow black white purple pink brown gray"),
    "tool": _words("hammer drill saw ladder screwdriver pliers wrench shovel brush rope"),
    "furniture": _words("chair table sofa desk bed shelf mirror wardrobe bench stool"),
    "clothing": _words("coat hat shoe jacket sweater shirt scarf glove sock dress"),
    "vehicle": _words("train plane ship bicycle bus truck car boat tram ferry"),
    "weather": _words("rain snow storm wind fog hail thunder frost sunshine cloud"),
    "drink": _words("water milk tea coffee juice wine beer cocoa lemonade soda"),
}

#: (big unit, small unit, how many small ones make a big one). Powers of ten only: the rule then covers held-out values.
UNITS: Final[tuple[tuple[str, str, int], ...]] = (
    ("kilometers", "meters", 1000),
    ("meters", "centimeters", 100),
    ("centimeters", "millimeters", 10),
    ("kilograms", "grams", 1000),
    ("tons", "kilograms", 1000),
    ("liters", "milliliters", 1000),
    ("euros", "cents", 100),
    ("decades", "years", 10),
    ("centuries", "years", 100),
)

GOOD: Final[tuple[str, ...]] = _words(
    "great lovely perfect excellent wonderful fast reliable beautiful friendly useful"
)
BAD: Final[tuple[str, ...]] = _words("broken awful slow terrible noisy ugly damaged useless rude dirty")

#: topic -> short sentences in the words of everyday mail; `{p}` is a product, `{n}` a name. None of
#: them is a sentence of a ticket (a test compares them): the demo's task stays one that the base has not seen.
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "money": (
        "the bill for the {p} was paid twice",
        "{n} got an invoice with the wrong amount",
        "my bank card was charged again",
        "the price of the {p} was 20 euros too high",
        "{n} wants a receipt for the payment",
        "the discount is missing on the invoice",
    ),
    "transport": (
        "the parcel with the {p} is late",
        "the courier left the package at the wrong address",
        "{n} is still waiting for the delivery of the {p}",
        "the truck with the {p} has not arrived",
        "tracking shows no package for {n}",
        "the {p} was shipped yesterday",
    ),
    "exchange": (
        "{n} wants to send the {p} back",
        "the {p} is the wrong size and goes back",
        "please exchange the {p} for a bigger one",
        "{n} returned the {p} and wants a refund",
        "the {p} is not what {n} ordered",
        "we need a return label for the {p}",
    ),
    "login": (
        "{n} forgot the password",
        "the profile of {n} is locked",
        "the login page does not accept my email",
        "please delete the account of {n}",
        "{n} wants to change the user name",
        "i cannot sign in with the new password",
    ),
    "fault": (
        "the {p} makes a strange noise and stops",
        "nothing happens when {n} turns on the {p}",
        "the screen of the {p} is black",
        "the {p} shows an error after the update",
        "the app crashes when {n} opens it",
        "the {p} is broken and gets too hot",
    ),
    "question": (
        "how big is the {p}",
        "does the {p} come in blue",
        "can the {p} run on batteries",
        "{n} asks which {p} is the best",
        "for how many years is the {p} under warranty",
        "is the {p} made of wood or metal",
    ),
}
