"""Every shape of row that is read, and every fault that stops the reading, with its place and remedy."""

import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from distributed_ft.data.examples import Message
from distributed_ft.data.reading import read_examples
from distributed_ft.errors import DataError

U, A, S = "user", "assistant", "system"
GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}'


def twins() -> bytes:
    """A Parquet file with two columns of one name."""
    columns = [("prompt", "a"), ("prompt", "b"), ("completion", "c")]
    table = pyarrow.Table.from_arrays([pyarrow.array([v]) for _, v in columns], names=[name for name, _ in columns])
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue().to_pybytes()


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def messages(path: Path) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in example.messages] for example in read_examples(path)]


def test_chat_rows_keep_roles_ids_groups_and_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        chat((S, "be kind"), (U, "hi"), (A, "yo")),
        "",
        json.dumps({"id": 7, "skill": "greeting", **json.loads(GOOD)}),
        json.dumps({"id": 7, "category": "other", **json.loads(GOOD)}),
    ]
    path.write_text("\n".join(rows))
    examples = read_examples(path)
    assert [e.id for e in examples] == ["a:1", "7", "7@4"]
    assert [e.line for e in examples] == [1, 3, 4]
    assert [e.group for e in examples] == [None, "greeting", "other"]
    assert examples[0].messages == (Message(S, "be kind"), Message(U, "hi"), Message(A, "yo"))
    assert examples[1].digest == examples[2].digest != examples[0].digest


def test_alpaca_rows_join_instruction_and_input(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
        {"instruction": "Greet.", "input": None, "output": "Hi", "system": "Be brief."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert messages(path) == [
        [(U, "Add.\n\n1 2"), (A, "3")],
        [(U, "Greet."), (A, "Hi")],
        [(S, "Be brief."), (U, "Greet."), (A, "Hi")],
    ]


@pytest.mark.parametrize("answer", ["completion", "response"])
def test_prompt_rows_take_either_name_for_the_answer(tmp_path, answer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "1+1", answer: "2"}))
    assert messages(path) == [[(U, "1+1"), (A, "2")]]


@pytest.mark.parametrize("wrap", ["%s", '{"data": %s}', '{"version": {"data": []}, "data":\n%s, "n": 1}'])
def test_a_json_list_is_read_with_the_lines_of_its_rows(tmp_path, wrap):
    path = tmp_path / "a.json"
    path.write_text(wrap % f"[\n{GOOD},\n\n{GOOD}]")
    shift = wrap.count("\n")
    assert [e.line for e in read_examples(path)] == [2 + shift, 4 + shift]


def test_csv_lines_are_those_of_the_file_even_behind_quoted_newlines(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["instruction", "output"])
        writer.writerow(["two\nlines", 'say "hi",\nthen stop'])
        writer.writerow(["short", "answer"])
    examples = read_examples(path)
    assert [e.line for e in examples] == [2, 5]
    assert examples[0].messages[1].content == 'say "hi",\nthen stop'
    assert [e.id for e in examples] == ["a:2", "a:5"]


def test_tsv_and_a_byte_order_mark_and_long_fields_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    limit = csv.field_size_limit()
    path.write_bytes(b"\xef\xbb\xbf" + b"prompt\tcompletion\nhi\t" + b"x" * 200_000 + b"\r\n")
    assert messages(path) == [[(U, "hi"), (A, "x" * 200_000)]]
    assert csv.field_size_limit() == limit


def test_a_line_separator_inside_a_json_string_does_not_end_the_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD.replace("yo", "y\u2028o") + "\r\n" + GOOD + "\r\n", encoding="utf-8")
    assert [e.line for e in read_examples(path)] == [1, 2]


BROKEN = {  # name -> (file name, content, line, what the message says)
    "empty file": ("a.jsonl", "", None, ["empty"]),
    "only white space": ("a.json", " \n ", None, ["empty"]),
    "only a byte order mark": ("a.csv", b"\xef\xbb\xbf", None, ["empty"]),
    "empty list": ("a.json", "[]", None, ["no rows"]),
    "only a header": ("a.csv", "prompt,completion\n", None, ["no rows"]),
    "broken line": ("a.jsonl", GOOD + '\n{"messages": [}\n' + GOOD, 2, ["not valid JSON", "column 15", "one whole"]),
    "half-written line": ("a.jsonl", GOOD + "\n" + GOOD[:40], 2, ["half-written", "complete the row"]),
    "not an object": ("a.jsonl", GOOD + "\n[1, 2]\n", 2, ["not an object", "[1, 2]"]),
    "a number": ("a.json", "[1]", 1, ["not an object"]),
    "list in jsonl": ("a.jsonl", "[\n" + GOOD + "\n]", 1, ["rename the file to a.json"]),
    "jsonl in json": ("a.json", GOOD + "\n" + GOOD, 1, ["rename the file to a.jsonl"]),
    "object without data": ("a.json", '{"rows": []}', 1, ["without 'data'", "'rows'"]),
    "data is no list": ("a.json", '{"data": 3}', 1, ['"data" is not a list']),
    "half-written json": ("a.json", "[" + GOOD + ",\n" + GOOD[:30], 2, ["half-written"]),
    "unclosed json": ("a.json", "[" + GOOD + "\n", 2, ["not closed"]),
    "missing comma": ("a.json", "[" + GOOD + "\n" + GOOD + "]", 2, ["comma is missing"]),
    "trailing comma": ("a.json", "[" + GOOD + ",\n]", 2, ["comma"]),
    "text behind the list": ("a.json", "[" + GOOD + "]\nx", 2, ["not valid JSON"]),
    "json scalar": ("a.json", "3", 1, ["neither a list nor an object"]),
    "duplicate key": ("a.jsonl", '{"prompt": "a", "prompt": "b", "completion": "c"}', 1, ["'prompt'", "twice"]),
    "deep nesting": ("a.jsonl", '{"prompt": ' + "[" * 100_000, 1, ["JSON"]),
    "nul byte": ("a.jsonl", GOOD + "\n\0\0\n", 2, ["NUL"]),
    "escaped nul": ("a.jsonl", chat((U, "a"), (A, "b\0")), 1, ["NUL", "messages[1]"]),
    "half a surrogate": ("a.jsonl", chat((U, "a"), (A, "\ud83d")), 1, ["surrogate"]),
    "latin-1": ("a.jsonl", GOOD.encode() + b'\n{"prompt": "caf\xe9"}', 2, ["byte 15 of the line", "0xe9", "UTF-8"]),
    "latin-1 in json": ("a.json", b'[\n"caf\xe9"]', 2, ["byte 6 of the file", "0xe9"]),
    "latin-1 behind a mark": ("a.csv", b"\xef\xbb\xbfprompt,completion\ncaf\xe9,b", 2, ["byte 3 of", "0xe9"]),
    "utf-16": ("a.csv", "prompt,completion\na,b".encode("utf-16"), 1, ["UTF-16"]),
    "misspelt column": ("a.jsonl", '{"instrution": "a", "output": "b"}', 1, ["'instrution', 'output'", "did you mean"]),
    "misspelt answer": ("a.jsonl", '{"instruction": "a", "outptu": "b"}', 1, ["'output'", "did you mean"]),
    "no answer column": ("a.csv", "prompt,x\na,b\n", 2, ["'completion' or 'response'", "found: 'prompt', 'x'"]),
    "null column": ("a.jsonl", '{"instruction": null, "output": "b"}', 1, ["instruction is null"]),
    "null answer": ("a.jsonl", '{"instruction": "a", "output": null}', 1, ["output is null"]),
    "two answers": ("a.jsonl", '{"prompt": "a", "completion": "b", "response": "c"}', 1, ["'completion' and 'resp"]),
    "two shapes in a row": ("a.jsonl", '{"prompt": "a", "instruction": "b", "output": "c"}', 1, ["in one row"]),
    "mixed shapes": ("a.jsonl", GOOD + '\n{"prompt": "a", "completion": "b"}', 2, ["mixed shapes", "line 1"]),
    "answer is a number": ("a.jsonl", '{"prompt": "a", "completion": 3}', 1, ["completion is a number, 3"]),
    "messages is text": ("a.jsonl", '{"messages": "hi"}', 1, ["messages is text", "not a list"]),
    "message is text": ("a.jsonl", '{"messages": ["hi"]}', 1, ["messages[0] is text"]),
    "message without role": (
        "a.jsonl",
        '{"messages": [{"rol": "user", "content": "a"}]}',
        1,
        ["'role'", "did you mean"],
    ),
    "content in parts": ("a.jsonl", '{"messages": [{"role": "user", "content": [1]}]}', 1, ["content is a list, [1]"]),
    "a broken tool call": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}]}',
        1,
        ["messages[0].tool_calls[0]", "names no function"],
    ),
    "tool arguments cut off": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\\"a\\": "}}]}]}',
        1,
        ["arguments", "no JSON object"],
    ),
    "tools are no list": ("a.jsonl", GOOD[:-1] + ', "tools": "f"}', 1, ["tools is text", "list of functions"]),
    "legacy functions": ("a.jsonl", GOOD[:-1] + ', "functions": [{"name": "f"}]}', 1, ["functions", "'tools'"]),
    "half a weight": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}',
        1,
        ["messages[1].weight: 0.5", "neither 0 nor 1"],
    ),
    "an image": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
        1,
        ["messages[0].content is a list", "only text"],
    ),
    "reasoning": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "because"}]}',
        1,
        ["reasoning_content", "not supported"],
    ),
    "history beside messages": ("a.jsonl", GOOD[:-1] + ', "history": [["c", "d"]]}', 1, ["history", "'messages'"]),
    "history that is no pairs": (
        "a.jsonl",
        '{"instruction": "a", "output": "b", "history": [["c"]]}',
        1,
        ["history[0]", "not a question and its answer"],
    ),
    "sharegpt speaker": (
        "a.jsonl",
        '{"conversations": [{"from": "humann", "value": "a"}]}',
        1,
        ["conversations[0].from", "did you mean 'human'"],
    ),
    "sharegpt without value": ("a.jsonl", '{"conversations": [{"from": "human"}]}', 1, ["has no 'value'"]),
    "sharegpt turns in messages": (
        "a.jsonl",
        '{"messages": [{"from": "human", "value": "a"}]}',
        1,
        ["has no 'role'", "format: sharegpt"],
    ),
    "preference data": ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}', 1, ["preference data"]),
    "only preferences": ("a.jsonl", '{"chosen": [], "rejected": []}', 1, ["preference data", "'completion'"]),
    "plain text to be asked": ("a.jsonl", '{"text": "once"}', 1, ["no question and no answer"]),
    "half a surrogate in an id": ("a.jsonl", GOOD[:-1] + ', "id": "\\ud800x"}', 1, ["id", "surrogate"]),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-40], 1, ["cut off or damaged"]),
    "no gzip": ("a.jsonl.gz", GOOD, 1, ["cut off or damaged", "Not a gzipped file"]),
    "truncated xz": ("a.jsonl.xz", lzma.compress(GOOD.encode())[:-20], 1, ["cut off or damaged"]),
    "broken bz2": ("a.csv.bz2", b"BZh9xxxxxxxxxxxxxx", 1, ["cut off or damaged"]),
    "no zstd": ("a.jsonl.zst", GOOD, 1, ["cut off or damaged"]),
    "zip": ("a.zip", b"PK", None, ["unpack it"]),
    "packed parquet": ("a.parquet.gz", b"", None, ["'.parquet.gz'", "unpack it"]),
    "unknown role": (
        "a.jsonl",
        chat(("asistant", "a")),
        1,
        ["unknown role", "did you mean 'assistant'", "system, user"],
    ),
    "role of a wrong type": ("a.jsonl", '{"messages": [{"role": ["user"], "content": "a"}]}', 1, ["unknown role"]),
    "no answer": ("a.jsonl", chat((U, "a")), 1, ["no assistant turn"]),
    "no messages": ("a.jsonl", chat(), 1, ["no assistant turn", "none"]),
    "user has the last word": ("a.jsonl", chat((U, "a"), (A, "b"), (U, "why?")), 1, ["last turn", "why?"]),
    "answer to nothing": ("a.jsonl", chat((A, "b")), 1, ["begins with an assistant turn"]),
    "empty answer": ("a.jsonl", chat((U, "a"), (A, " \n")), 1, ["empty answer"]),
    "empty csv answer": ("a.csv", "prompt,completion\na,b\nc,\n", 3, ["empty answer"]),
    "empty question": ("a.jsonl", '{"instruction": "", "input": "", "output": "b"}', 1, ["empty question"]),
    "too few fields": ("a.csv", 'prompt,completion\n"a\nb",c\nd\n', 4, ["1 fields", "header has 2", '"d"']),
    "too many fields": ("a.csv", "prompt,completion\na,b,c\n", 2, ["3 fields"]),
    "unclosed quote": ("a.csv", 'prompt,completion\na,b\nc,"d\ne,f\n', 3, ["never closed"]),
    "semicolons": ("a.csv", "prompt;completion\na;b\n", 1, ["one column", "commas"]),
    "column twice": ("a.csv", "prompt,prompt\na,b\n", 1, ["'prompt' stands twice"]),
    "unknown format": ("a.xlsx", b"PK", None, [".xlsx", "convert it", ".jsonl"]),
    "parquet column twice": ("a.parquet", twins(), None, ["'prompt' stands twice", "rename"]),
    "corrupt parquet": ("a.parquet", b"PAR1\xff" * 9, None, ["not a whole Parquet file", "0 rows"]),
    "corrupt arrow": ("a.arrow", b"ARROW1\0\0" * 9, None, ["not a whole Arrow file", "0 rows"]),
    "no extension": ("data", GOOD, None, ["no extension"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_fault_is_one_line_with_file_line_value_and_remedy(tmp_path, case):
    name, content, line, expected = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: "), message
    assert "\n" not in message
    assert ";" in message, "what; the remedy"
    assert len(message) < len(str(path)) + 400
    for part in expected:
        assert part in message, message


def test_a_missing_file_and_a_directory_say_what_to_name_instead(tmp_path):
    (tmp_path / "train.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=r"trian.jsonl: no such file; did you mean 'train.jsonl'"):
        read_examples(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="no such file; check the path"):
        read_examples(tmp_path / "nowhere" / "x.jsonl")
    (tmp_path / "train.jsonl").rename(tmp_path / "train.txt")
    with pytest.raises(DataError, match="directory without data files"):
        read_examples(tmp_path)
