"""What `dft data preview` prints: every token of a row once, what is learned of it, within the terminal's width."""

import json
import re

import pytest
from support.chat_tokenizers import STYLES, tokenizer
from support.tiny import make_base

from distributed_ft.config.load import load
from distributed_ft.data.chat import render
from distributed_ft.data.examples import Message
from distributed_ft.errors import ConfigError, DataError
from launcher.preview import Piece, marked, painted, pieces, preview, wrapped

ROW = [
    {"role": "user", "content": "what is 日本, and what does \u001b[31m do to a terminal that is narrow?"},
    {"role": "assistant", "content": "a country 😀\n\nand\tthis"},
]
MESSAGES = tuple(Message(turn["role"], turn["content"]) for turn in ROW)
ANSI = re.compile("\x1b\\[[0-9;]*m")


@pytest.mark.parametrize("name", STYLES)
def test_the_pieces_are_the_text_and_know_what_is_learned(name):
    tok = tokenizer(name)
    rendered = render(tok, MESSAGES)
    shown = list(pieces(tok, rendered))
    assert "".join(piece.text for piece in shown) == tok.decode(rendered.ids)
    learned = [i for i, s in zip(rendered.ids, rendered.supervised, strict=True) if s]
    assert "".join(piece.text for piece in shown if piece.learned) == tok.decode(learned)
    assert [p.text for p in shown if p.special and p.learned] == [tok.convert_ids_to_tokens(learned[-1])]


def test_marks_stand_around_what_is_learned():
    tokens = [
        Piece("hi\n", False, False),
        Piece("yes", True, False),
        Piece("<e>", True, True),
        Piece("\n", False, False),
    ]
    assert marked(tokens, 80) == "hi↵\n[[yes<e>]]↵"
    assert marked(tokens[:3], 80) == "hi↵\n[[yes<e>]]"


def test_colours_say_what_the_marks_say_and_end_with_each_token():
    tokens = [Piece("hi\n", False, False), Piece("yes", True, False), Piece("<e>", True, True)]
    text = painted(tokens, 80)
    assert ANSI.sub("", text) == "hi↵\nyes<e>"
    assert text.count("\x1b[0m") == 3
    backgrounds = re.findall(r"48;5;(\d+)", text)
    assert len(set(backgrounds)) == 2, "two learned tokens, told apart"


@pytest.mark.parametrize("width", [10, 17, 40])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(width):
    words = ["hello", " wide", "日本日本日本日本日本", "\n", "é", "e\u0301", "x" * 50, "\x1b[31m", "\u202e", " end"]
    lines = ["".join(part for _, part in line) for line in wrapped(words, width)]
    assert "".join(lines) == "".join(words).replace("\n", "↵").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    wide = [sum(2 if c in "日本" else 0 if c == "\u0301" else 1 for c in line) for line in lines]
    assert max(wide) <= width
    assert lines[0].startswith("hello wide")


@pytest.fixture
def loaded(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    for name in ("a", "b"):
        rows = [json.dumps({"id": f"{name}{i}", "messages": ROW}) + "\n" for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "run.yaml").write_text(
        f"name: x\nmodel: {{base: {base}}}\ndata: {{train: [a.jsonl, b.jsonl], seq_len: 64}}\n"
    )
    return load(tmp_path / "run.yaml")


def test_some_rows_of_each_file_are_shown_with_their_counts(loaded, capsys):
    assert preview(loaded, 2) == 0
    out = capsys.readouterr().out
    assert re.findall(r"jsonl:(\d)  (\w+): (\d+) tokens, (\d+) learned \((\d+)%\)", out)[0][:2] == ("1", "a0")
    assert [match[1] for match in re.findall(r"jsonl:(\d)  (\w+):", out)] == ["a0", "a1", "b0", "b1"]
    assert "stop      <|im_end|>" in out
    assert "longer than data.seq_len (64)" in out
    assert "[[a country 😀↵\n↵\nand⇥this<|im_end|>]]" in out
    assert "\x1b" not in out
    preview(loaded, 1, color=True)
    assert "48;5;" in capsys.readouterr().out


def test_one_row_is_shown_by_its_line(loaded, capsys):
    assert preview(loaded, 2, row=3) == 0
    assert re.findall(r"jsonl:(\d)  (\w+):", capsys.readouterr().out) == [("3", "a2"), ("3", "b2")]
    with pytest.raises(ConfigError, match=r"--row 4: no row begins at this line of .*a\.jsonl"):
        preview(loaded, 2, row=4)


def test_a_file_without_a_row_that_can_be_read_is_said_to_be_one(tmp_path):
    (tmp_path / "train.jsonl").write_text("broken\n")
    base = make_base(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(
        f"name: r\nmodel: {{base: {base}, dtype: fp32}}\ndata: {{train: train.jsonl, skip_bad: 2}}\n"
    )
    with pytest.raises(DataError, match=r"train.jsonl: no row can be read"):
        preview(load(tmp_path / "run.yaml"), 3)
