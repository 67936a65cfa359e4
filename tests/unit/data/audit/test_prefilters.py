"""What RE2 looks for first is in every row that the checks would say something of: against asking them of each row."""

import random
import re
import string

from distributed_ft.data.audit import answers, characters, private, secrets
from distributed_ft.data.audit.rows import Rows
from distributed_ft.data.examples import Example, Message

_BEGINNINGS = """
AKIA ASIA A3T aws_ AWS_secret_key= PRIVATE_KEY ghp_ gho_ glpat- xoxb- https://hooks.slack.com/services/ T3BlbkFJ
sk_live_ eyJ AccountKey= https://user:Pa55wd@host.io/ SG. pypi- //registry/:_authToken= sq0csp- sk-proj- AIza hf_
github_pat_ npm_ password:X Passphrase=" pwd:=' secret=> toKen: apİkey= API-KEY:  access_key= auth-key:
@mail.org bob@gmail.com +49 (212) 736-5000 Tel.:030 81.12.3.4 4539-1488-0343-6467 DE89370400440532013000
RSSMRA85T10A562S X1234567L 12345678Z 123-45-6789 NHS9434765919 ١٢٣٤٥٦٧٨٩ \ufffd \x07 \x85 Ã© â€™ ðŸ˜€ é 你好
TODO XXX [insert <your {{name}} N/A Lorem lorem_ipsum sorry, I'm İ'm ı ſ K unfortunately
"""
_PHRASES = """
as an AI|I am unable to assist|to be added later|call me at |my number is |a large language model|against my guidelines
|I must decline|I’m not comfortable with
|I don’t have personal opinions|against the content policy|violates OpenAI’s usage policies|my training data ends|
The answer is|is| |\n|"|'|```|.
"""
BEGINNINGS, PHRASES = re.split("[ \n]+", _BEGINNINGS), _PHRASES.split("|")


def _said(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice(BEGINNINGS).replace("_", rng.choice("_ ")))
        elif kind < 0.7:
            parts.append(rng.choice(PHRASES))
        else:
            alphabet = rng.choice((string.digits + " -.", string.ascii_letters + string.digits, "0123456789ABCDEF"))
            parts.append("".join(rng.choices(alphabet, k=rng.choice((3, 9, 16, 24, 36, 48)))))
    return "".join(parts)


def test_no_row_that_a_check_would_tell_of_is_passed_over() -> None:
    rng = random.Random(0)
    said = [(_said(rng), _said(rng)) for _ in range(3000)]
    examples = [Example("", (Message("user", p), Message("assistant", a)), 1, "t", None) for p, a in said]
    rows = Rows(examples)
    every = dict(enumerate(rows.texts))
    assert private.look(rows).kinds == {i: kind for i, t in every.items() if (kind := next(private._found(t), None))}
    assert characters.look(rows).faults == {i: fault for i, t in every.items() if (fault := characters._fault(t))}
    assert answers.look(rows).placeholder.tolist() == [answers._placeholder(answer) for _, answer in said]
    told = {i for i, t in every.items() if next(secrets._keys(t), None) or secrets._is_told(t)}
    assert secrets.look(rows).kinds.keys() == told
    assert min(len(private.look(rows).kinds), len(told)) > 200
