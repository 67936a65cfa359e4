"""White space by a table of before and after, and what must never be touched."""

import json
import random
from collections import Counter

import pytest

from distributed_ft.data.cleaning import KINDS, clean, clean_messages, unfit
from distributed_ft.data.examples import Message

TABLE = [
    ("one\r\ntwo\rthree", "one\ntwo\nthree", {"line_ends": 2}),
    ("10\u00a0km,\u202f5\u2009m", "10 km, 5 m", {"odd_spaces": 3}),
    ("\ufeffzero\u200bwidth\u2060", "zerowidth", {"invisible": 3}),
    ("a \nb\t\nc   \nd", "a\nb\nc\nd", {"trailing_spaces": 3}),
    ("last of a paragraph  \n\nlast  ", "last of a paragraph\n\nlast", {"trailing_spaces": 2}),
    ("a\n\n\n\n\n\nb", "a\n\n\nb", {"blank_lines": 1}),
    ("a\n \n \n \n \nb", "a\n\n\nb", {"trailing_spaces": 4, "blank_lines": 1}),
    ("\n \n  indented\n", "  indented", {"trailing_spaces": 1, "outer_lines": 2}),
    ("a\u00a0\nb", "a\nb", {"odd_spaces": 1, "trailing_spaces": 1}),
    ("\u200b", "", {"invisible": 1}),
    ("text \n```\ncode \n```\nmore ", "text\n```\ncode \n```\nmore", {"trailing_spaces": 2}),
]
UNTOUCHED = [
    "plain",
    " leading space",
    "def f():\n    return 1\n\n\nclass A:\n\tx = 1",
    "```python\nx = '\u00a0'  \n\n\n\n\n\ny\t\n```",
    "see:\n~~~\na  \n~~~~\nand `b`",
    "never closed:\n```\na  \n\n\n\n\n\nb",
    '{"a":\u00a0"x\u00a0y  "}'.replace(":\u00a0", ": "),
    "[1,\n\n\n\n\n 2] ",
    "👨\u200d👩\u200d👧 می\u200cخواهم",
    "\u3000全角",
    "Roses are red,  \nviolets are blue.",
]


@pytest.mark.parametrize(("before", "after", "kinds"), TABLE)
def test_white_space_is_put_in_order_and_counted(before, after, kinds):
    changes = Counter()
    assert clean(before, changes) == after
    assert changes == kinds
    assert set(kinds) <= set(KINDS)


@pytest.mark.parametrize("text", UNTOUCHED)
def test_code_json_indentation_and_joiners_are_left_alone(text):
    changes = Counter()
    assert clean(text, changes) is text
    assert not changes


def test_cleaning_twice_is_cleaning_once_and_no_visible_character_is_lost():
    r = random.Random(0)
    pieces = ["a", "B", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\n```\n", "{", "}", "é", "\n\n\n"]
    for _ in range(3000):
        text = "".join(r.choice(pieces) for _ in range(r.randrange(30)))
        once = clean(text, Counter())
        again = Counter()
        assert clean(once, again) == once, repr(text)
        assert not again
        visible = [c for c in text if not c.isspace() and c != "\u200b"]
        assert [c for c in once if not c.isspace() and c != "\u200b"] == visible


def test_tool_results_and_what_goes_with_a_message_stay():
    call = Message("assistant", "", extras='{"tool_calls": []}')
    messages = (Message("user", "q "), call, Message("tool", "raw  \n"), Message("assistant", "a", trained=False))
    cleaned, changes = clean_messages(messages)
    assert [m.content for m in cleaned] == ["q", "", "raw  \n", "a"]
    assert cleaned[1] is call
    assert cleaned[3].trained is False
    assert changes == {"trailing_spaces": 1}
    assert json.loads(cleaned[1].extras) == {"tool_calls": []}


@pytest.mark.parametrize(
    ("question", "answer", "least", "reason"),
    [
        ("q", "a", 1, None),
        ("q", "", 1, "empty answer"),
        (" ", "a", 1, "empty question"),
        ("q", " abc ", 4, "short answer: 3 characters, not 4"),
        ("q", "abcd", 4, None),
    ],
)
def test_rows_that_teach_nothing(question, answer, least, reason):
    assert unfit([Message("system", ""), Message("user", question), Message("assistant", answer)], least) == reason


def test_an_answer_that_only_calls_a_tool_is_none_that_is_empty():
    assert unfit([Message("user", "q"), Message("assistant", "", extras='{"tool_calls": [1]}')], 5) is None
