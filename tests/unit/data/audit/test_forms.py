"""The form of an answer and the words of a text, against tables made by hand."""

import random
import re

import numpy as np
import pytest

from distributed_ft.data.audit.forms import form_of
from distributed_ft.data.audit.masking import masked
from distributed_ft.data.audit.words import words_of

FORMS = [
    ('{"a": 1}', "JSON object", 0, False),
    (' {"a": 1}\n', "JSON object", 1, False),
    ("[1, 2]", "JSON array", 0, False),
    ('{"a": 1}\nThe rest is prose.', "JSON object+text", 9, False),
    ('{"a": 1, "b": and so on for a while', "broken JSON object", 14, False),
    ('{"a": "x', "JSON object", 6, True),
    ('{"a": 1, "b": tr', "JSON object", 14, True),
    ('{"a": 376.', "JSON object", 9, True),
    ('Sure:\n{"a": 1}', "text+JSON object", 0, False),
    ('Here you go: {"a": 1}', "text+JSON object", 0, False),
    ("```json\n{}\n```", "fenced block", 0, False),
    ("```python\nx = 1", "fenced block", 15, True),
    ("Do this:\n```\nx\n```\nDone.", "text+fenced block+text", 0, False),
    ('```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```', "fenced block", 0, False),
    ("<a>x</a>", "tags", 0, False),
    ("<a>x</a> and so on", "tags+text", 9, False),
    ("<a>x", "tags", 4, True),
    ("- one\n- two", "list", 0, False),
    ("- one\n- two\nAnd then prose.", "list+text", 12, False),
    ("1. one\n2. two", "numbered list", 0, False),
    ("name: Ann\nage: 3", "key: value lines", 0, False),
    ("positive", "short", 0, False),
    ("Positive.", "text", 0, False),
    ("-12.5%", "number", 0, False),
    ("", "empty", 0, False),
    ("[a link](x) is no JSON, and {neither} is this.", "text", 0, False),
]


@pytest.mark.parametrize(("answer", "name", "breaks", "cut"), FORMS)
def test_the_form_of_an_answer_is_that_of_the_table(answer: str, name: str, breaks: int, cut: bool) -> None:
    form = form_of(answer)
    assert (form.name, form.cut) == (name, cut)
    if breaks:
        assert form.breaks == breaks


def test_words_and_ngrams_are_those_of_a_loop() -> None:
    rng = random.Random(0)
    texts = ["", "Hello,  World!", "hello world", "HELLO “world”", "...", "Ünïcode ﬁ words", "x" * 500]
    texts += [
        " ".join(rng.choice(("a", "b", "cd", "e7", "don't,")) for _ in range(rng.randrange(30))) for _ in range(500)
    ]
    words = words_of(texts)
    plain = [re.findall(r"\w+", text.lower().replace("ﬁ", "fi")) for text in texts]
    assert [len(p) for p in plain] == np.diff(words.starts).tolist()
    for n in (1, 2, 3):
        hashes, which = words.ngrams(n)
        expected = [(tuple(p[i : i + n]), t) for t, p in enumerate(plain) for i in range(len(p) - n + 1)]
        assert [t for _, t in expected] == which.tolist()
        named: dict[tuple[str, ...], int] = {}
        assert all(named.setdefault(gram, int(h)) == int(h) for (gram, _), h in zip(expected, hashes, strict=True))
        assert len(set(named.values())) == len(named)
    whole = words.sequences().tolist()
    assert whole[0] == whole[4] == 0
    assert whole[1] == whole[2] == whole[3]
    assert len(set(whole)) == len({tuple(p) for p in plain})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Größe: ①２ Straße, ÉCOLE!", ["grösse", "12", "strasse", "école"]),
        ("你好，世界 abc", ["你", "好", "世", "界", "abc"]),
        ("これはtestです", ["こ", "れ", "は", "test", "で", "す"]),
        ("Привет, как_дела? İstanbul", ["привет", "как", "дела", "i", "stanbul"]),  # İ is i and a dot above
        ("zero\x85width\u2028lines\ud800", ["zero", "width", "lines"]),
        ("“quoted” – e\u0301tude №5 🙂", ["quoted", "étude", "no5"]),
    ],
)
def test_words_of_other_alphabets_are_those_of_the_table(text: str, words: list[str]) -> None:
    found = words_of([text, "plain text", *words])
    hashes = found.hashes.tolist()
    assert hashes[: found.starts[1]] == hashes[found.starts[2] :]


def test_masking_leaves_words_and_takes_what_is_private() -> None:
    text = "Write to ann.lee@mail.org or +49 170 1234567, key AKIAQQ7XJ2M4N5P6R7S8, from 81.12.3.4, password: hunter22x"
    text += ", order A17."
    assert masked(text) == ("Write to [email] or [number], key [key], from [address], password: [secret], order A17.")
