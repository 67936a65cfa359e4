"""`dft data prepare` on files: splits that stay, groups that never straddle, a folder that is whole or not there."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_ft.artifacts import sha256_of
from distributed_ft.data.curate import Wanted, curate
from distributed_ft.data.prepared_folder import NAMES
from distributed_ft.data.reading import Reading, read_examples
from distributed_ft.errors import ConfigError, DataError
from launcher.cli import main

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "re") for b in ("ba", "de", "fi", "go", "hu", "ja")]
SPLITS = ("train", "validation", "test")


def text(r, length):
    return " ".join(r.choice(WORDS) + str(r.randrange(30)) for _ in range(length))


def row(r, **more):
    return {"prompt": text(r, 15), "completion": text(r, 60), "category": r.choice("abc"), **more}


def write(path, rows):
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in rows), encoding="utf-8")
    return path


def prepare(path, out, keep=(), **options):
    paths = path if isinstance(path, list) else [path]
    readings = tuple(Reading(str(p), keep=keep) for p in paths)
    return curate(Wanted(readings, out, **options), lambda what, done: None)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def where(out):
    """(prompt, completion) -> split."""
    return {
        tuple(m["content"] for m in value["messages"]): split
        for split in SPLITS
        for value in lines(out / f"{split}.jsonl")
    }


def key(value):
    return value["prompt"], value["completion"]


@pytest.fixture
def rows():
    r = random.Random(0)
    return [row(r) for _ in range(300)]


def test_every_row_is_in_one_split_or_in_removed_and_the_manifest_is_true(tmp_path, rows):
    rows[10]["completion"] = " "
    rows[20]["prompt"] = ""
    rows[30] = rows[3]
    manifest = prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out")
    kept = where(tmp_path / "out")
    assert {key(v) for i, v in enumerate(rows) if i not in (10, 20)} == set(kept)
    removed = lines(tmp_path / "out" / "removed.jsonl")
    assert [(v["line"], v["reason"]) for v in removed] == [
        (11, "empty answer"),
        (21, "empty question"),
        (31, "duplicate"),
    ]
    assert removed[2]["of"] == f"{tmp_path / 'raw.jsonl'}:4"
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rows"] == {
        "read": 300,
        "kept": 297,
        "removed": {"duplicate": 1, "empty answer": 1, "empty question": 1},
        "in_ledger": 297,
        "gone": 0,
    }
    for name, entry in manifest["files"].items():
        assert sha256_of(tmp_path / "out" / name) == entry["sha256"]
    assert manifest["inputs"][0]["sha256"] == sha256_of(tmp_path / "raw.jsonl")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(NAMES)
    for split in SPLITS:
        found = read_examples(tmp_path / "out" / f"{split}.jsonl")
        assert len(found) == manifest["splits"][split]["rows"]
        assert all(example.id == example.digest[:16] and example.group in "abc" for example in found)


def test_what_a_row_has_comes_out_as_it_went_in(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "raw  \n", "tool_call_id": "1"},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "user", "content": "more\u00a0of it "},
            {"role": "assistant", "content": "yes"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "user": "u1",
    }
    manifest = prepare(write(tmp_path / "chat.jsonl", [chat]), tmp_path / "out", keep=("user",), shares=(1.0, 0.0, 0.0))
    (value,) = lines(tmp_path / "out" / "train.jsonl")
    assert value.pop("user") == "u1"
    assert value["tools"] == chat["tools"]
    assert value["messages"][4]["content"] == "more of it"
    for i in (0, 2, 3, 5):
        assert value["messages"][i] == chat["messages"][i]
    assert value["messages"][1]["tool_calls"] == [{**call, "function": {"name": "f", "arguments": {}}}]
    assert manifest["cleaned"]["odd_spaces"] == {"rows": 1, "changes": 1, "lines": [f"{tmp_path / 'chat.jsonl'}:1"]}
    again = prepare(tmp_path / "out" / "train.jsonl", tmp_path / "again", shares=(1.0, 0.0, 0.0))
    assert again["cleaned"] == {}
    assert lines(tmp_path / "again" / "train.jsonl")[0]["id"] == value["id"]


def test_plain_text_is_kept_as_text(tmp_path):
    r = random.Random(5)
    prepare(write(tmp_path / "raw.jsonl", [{"text": text(r, 30)} for _ in range(60)]), tmp_path / "out")
    assert all(set(value) == {"id", "text"} for value in lines(tmp_path / "out" / "train.jsonl"))
    assert sum(len(lines(tmp_path / "out" / f"{split}.jsonl")) for split in SPLITS) == 60


def near(value):
    return {**value, "prompt": value["prompt"] + " now"}


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_no_old_row_moves_when_rows_are_added(tmp_path, rows, place):
    r = random.Random(1)
    prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out")
    before = where(tmp_path / "out")
    fresh = [row(r) for _ in range(100)]
    close = [near(value) for value in r.sample(rows, 50)]
    same_prompt = [{**row(r), "prompt": value["prompt"]} for value in r.sample(rows, 50)]
    more = fresh + close + same_prompt
    if place == "between":
        mixed = rows + more
        r.shuffle(mixed)
    else:
        mixed = more + rows if place == "before" else rows + more
    write(tmp_path / "raw.jsonl", mixed)
    prepare(tmp_path / "raw.jsonl", tmp_path / "out")
    after = where(tmp_path / "out")
    assert {k: after[k] for k in before} == before
    for value in same_prompt + close:
        prompt = value["prompt"].removesuffix(" now")
        assert after[key(value)] == next(split for k, split in before.items() if k[0] == prompt)
    assert len({after[key(value)] for value in fresh}) == 3
    elsewhere = prepare(write(tmp_path / "fresh.jsonl", rows + fresh), tmp_path / "elsewhere")
    assert {k: where(tmp_path / "elsewhere")[k] for k in before} == before, "without a ledger, by content alone"
    assert elsewhere["rows"]["kept"] == 400


def test_a_second_run_on_the_same_rows_writes_the_same_bytes_and_keeps_what_people_wrote(tmp_path, rows):
    raw = write(tmp_path / "raw.jsonl", rows)
    prepare(raw, tmp_path / "out")
    first = {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
    prepare(raw, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in NAMES} == first
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text().replace("**Licence**: to be filled in", "**Licence**: CC-BY 4.0"))
    prepare(raw, tmp_path / "out")
    assert "**Licence**: CC-BY 4.0" in card.read_text()


def test_a_row_that_ties_two_splits_is_left_out_and_said(tmp_path):
    r = random.Random(9)
    rows = [{"prompt": text(r, 10), "completion": text(r, 200)} for _ in range(60)]
    prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out")
    before = where(tmp_path / "out")
    train, test = (next(v for v in rows if before[key(v)] == split) for split in ("train", "test"))
    bridge = {"prompt": train["prompt"], "completion": f"{test['prompt']} {test['completion']}"}
    manifest = prepare([tmp_path / "raw.jsonl", write(tmp_path / "more.jsonl", [bridge])], tmp_path / "out")
    assert where(tmp_path / "out") == before
    assert manifest["rows"]["removed"] == {"tied to two splits": 1}
    assert "1 new rows tie old rows of two splits together" in manifest["warnings"][-1]
    assert manifest["groups"]["straddling"] == 0
    (removed,) = lines(tmp_path / "out" / "removed.jsonl")
    assert (removed["path"], removed["line"]) == (str(tmp_path / "more.jsonl"), 1)


def test_users_stay_together_and_equal_prompts_too(tmp_path):
    r = random.Random(2)
    rows = [row(r, user=f"u{r.randrange(60)}") for _ in range(400)]
    rows += [{**row(r, user=f"u{r.randrange(60)}"), "prompt": r.choice(rows)["prompt"]} for _ in range(10)]
    prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out", keep=("user",), group_by="user")
    users, prompts = {}, {}
    for split in SPLITS:
        for value in lines(tmp_path / "out" / f"{split}.jsonl"):
            assert users.setdefault(value["user"], split) == split
            assert prompts.setdefault(value["messages"][0]["content"], split) == split
    assert len(set(users.values())) == 3


def test_near_duplicates_stay_in_one_split_or_are_dropped(tmp_path, rows):
    copies = [near(value) for value in rows[:100]]
    raw = write(tmp_path / "raw.jsonl", [*rows, *copies])
    manifest = prepare(raw, tmp_path / "together")
    splits = where(tmp_path / "together")
    assert all(splits[key(a)] == splits[key(b)] for a, b in zip(rows, copies, strict=False))
    assert manifest["groups"]["near_duplicate_rows"] == 200
    dropped = prepare(raw, tmp_path / "dropped", drop_near=True)
    assert dropped["rows"]["removed"] == {"near-duplicate": 100}
    assert set(where(tmp_path / "dropped")) == {key(value) for value in rows}
    assert prepare(raw, tmp_path / "apart", near=0.0)["groups"]["near_duplicate_rows"] == 0


def test_a_template_that_all_rows_share_makes_them_no_near_duplicates(tmp_path):
    r = random.Random(4)
    template = text(r, 150)
    raw = write(tmp_path / "raw.jsonl", [{**row(r), "prompt": f"{template}\n{text(r, 12)}"} for _ in range(200)])
    assert prepare(raw, tmp_path / "out")["groups"]["largest"] == 1
    assert prepare(raw, tmp_path / "out")["shared"], "kept, so that the next run compares the same"


def test_each_category_is_split_as_asked_within_chance(tmp_path):
    r = random.Random(6)
    raw = write(tmp_path / "raw.jsonl", [row(r, lang=r.choice(("de", "en"))) for _ in range(3000)])
    manifest = prepare(raw, tmp_path / "out", keep=("lang",), stratify="lang")
    for language in ("de", "en"):
        counts = [manifest["splits"][split]["categories"][language] for split in SPLITS]
        for count, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
            assert abs(count / sum(counts) - share) < 0.03


def test_one_giant_group_and_empty_splits_are_said(tmp_path):
    r = random.Random(7)
    raw = write(tmp_path / "raw.jsonl", [{**row(r), "prompt": "go on"} for _ in range(100)])
    manifest = prepare(raw, tmp_path / "out")
    assert any("one group has 100 of 100 rows" in warning for warning in manifest["warnings"])
    assert sum("got no row" in warning for warning in manifest["warnings"]) == 2
    assert manifest["warnings"][0] in (tmp_path / "out" / "README.md").read_text()


def test_unreadable_rows_are_quarantined_up_to_a_number(tmp_path, rows):
    raw = write(tmp_path / "raw.jsonl", rows[:5])
    with raw.open("a") as file:
        file.write('{"prompt": "half\n')
    with pytest.raises(DataError, match=r"raw.jsonl:6"):
        prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare(raw, tmp_path / "out", skip_bad=1)
    (removed,) = lines(tmp_path / "out" / "removed.jsonl")
    assert (removed["line"], removed["reason"], removed["raw"]) == (6, "unreadable", '{"prompt": "half')


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_folder_with_something_else_is_refused(tmp_path, rows):
    raw, out = write(tmp_path / "raw.jsonl", rows[:20]), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something else, for example 'thesis.txt'"):
        prepare(raw, out)
    (out / "thesis.txt").unlink()
    prepare(raw, out)
    with pytest.raises(ConfigError, match=r"--group-by: user, but .* was made with nothing"):
        prepare(raw, out, keep=("user",), group_by="user")
    with pytest.raises(ConfigError, match=r"--split: 90/5/5, but .* was made with 80/10/10"):
        prepare(raw, out, shares=(0.9, 0.05, 0.05))
    (out / "train.jsonl").write_text("edited")
    with pytest.raises(ConfigError, match="was changed after it was written"):
        prepare(raw, out)
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"holds something else, and no manifest.json"):
        prepare(raw, out)
    with pytest.raises(ConfigError, match="is a file"):
        prepare(raw, raw)


def test_what_is_read_is_never_overwritten(tmp_path, rows):
    raw, out = write(tmp_path / "raw.jsonl", rows[:30]), tmp_path / "out"
    prepare(raw, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "link").symlink_to(out)
    for source in (out, out / "train.jsonl", tmp_path / "link" / "test.jsonl"):
        with pytest.raises(ConfigError, match=r"out: holds .*(train|test)\.jsonl, which is to be read"):
            prepare(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    prepare(out, tmp_path / "other")


def test_rows_that_a_second_run_does_not_read_are_missed_once(tmp_path, rows):
    out = tmp_path / "out"
    old, new = write(tmp_path / "old.jsonl", rows[:30]), write(tmp_path / "new.jsonl", rows[30:50])

    def missed(path):
        return [w for w in prepare(path, out)["warnings"] if "earlier run are not among" in w]

    assert missed(old) == []
    (warning,) = missed(new)
    assert warning.startswith("30 rows of an earlier run are not among those read now")
    assert missed(new) == []
    assert prepare([old, new], out)["rows"]["gone"] == 0


def test_texts_and_conversations_are_not_written_into_one_file(tmp_path, rows):
    texts = write(tmp_path / "texts.jsonl", [{"text": "one two three"}])
    with pytest.raises(DataError, match=r"texts.jsonl:1: is plain text, and .*raw.jsonl:1 a conversation"):
        prepare([write(tmp_path / "raw.jsonl", rows[:3]), texts], tmp_path / "out")


def test_a_column_that_would_be_lost_is_refused(tmp_path):
    r = random.Random(3)
    raw = write(tmp_path / "raw.jsonl", [{**row(r), "id": f"n{i}", "label": "x", "note": None} for i in range(20)])
    for keep, options, message in (
        (("id",), {}, "--keep id: .* is the hash of the content"),
        (("category", "label"), {"stratify": "label"}, "--keep category: .* is label"),
        (("lable",), {}, "--keep: no row has a value in a column 'lable'"),
        (("note",), {}, "--keep: no row has a value in a column 'note'"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(raw, tmp_path / "out", keep=keep, **options)
    prepare(raw, tmp_path / "out", keep=("id",), group_by="id")


def test_nothing_is_left_behind_by_what_fails_or_is_stopped(tmp_path, rows):
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out"
    prepare(raw, out)
    before = {name: (out / name).read_bytes() for name in NAMES}
    for stage in ("reading", "comparing", "writing"):

        def stopped(what, done, stage=stage):
            if what == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            curate(Wanted((Reading(str(raw)),), out), stopped)
        with pytest.raises(KeyboardInterrupt):
            curate(Wanted((Reading(str(raw)),), tmp_path / "new"), stopped)
    assert sorted(os.listdir(tmp_path)) == ["out", "raw.jsonl"]
    assert {name: (out / name).read_bytes() for name in NAMES} == before


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, rows):
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out"
    prepare(raw, out)
    before = where(out)
    os.rename(out, tmp_path / ".out.before")
    prepare(raw, out)
    assert where(out) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "raw.jsonl"]


def test_a_column_that_no_row_has_and_rows_of_which_none_is_left(tmp_path, rows):
    raw = write(tmp_path / "raw.jsonl", rows[:5])
    with pytest.raises(ConfigError, match=r"--group-by: no row has a column 'usr' \(.*'category'"):
        prepare(raw, tmp_path / "out", keep=("usr",), group_by="usr")
    with pytest.raises(DataError, match=r"none of 5 rows is left \(5 short answer\)"):
        prepare(raw, tmp_path / "out", min_answer=10_000)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_made(tmp_path, rows, capsys):
    renamed = [{"question": value["prompt"], "reply": value["completion"], "user": "u"} for value in rows]
    raw, out = write(tmp_path / "raw.jsonl", renamed), tmp_path / "out"
    assert main(["data", "prepare", str(raw), "--out", str(out), "--columns", "prompt=question,completion=reply"]) == 0
    said = capsys.readouterr().out
    assert "raw.jsonl: 300 rows; JSON Lines" in said
    assert "splits   train 2" in said
    assert len(where(out)) == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--split 80/30", "--split 80/30: not percentages"),
        ("--split 0/50/50", "leaves nothing to train on"),
        ("--columns prompt", "--columns prompt: not names of columns"),
        ("--near 80", "'80' is not a number from 0 to 1"),
        ("--skip-bad x", "'x' is not a whole number"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, rows, capsys, arguments, message):
    raw = write(tmp_path / "raw.jsonl", rows[:3])
    assert main(["data", "prepare", str(raw), "--out", str(tmp_path / "out"), *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_verbs_of_two_words(capsys):
    assert main(["data"]) == 0
    assert "\n  data prepare  clean raw data" in capsys.readouterr().out
    assert main(["data", "prepair", "x"]) == 2
    assert "did you mean 'data prepare'?" in capsys.readouterr().err


# --- cost ----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
_MEASURE = """
import sys
from pathlib import Path
from distributed_ft.data.curate import Wanted, curate
from distributed_ft.data.reading import Reading
from support.memory import peak_kib
raw, out, near = sys.argv[1:]
curate(Wanted((Reading(raw),), Path(out), near=float(near)), lambda what, done: None)
print(peak_kib() / 1024)
"""


def test_rows_are_not_held_in_memory(tmp_path):
    r = random.Random(8)
    pool = [text(r, 20) for _ in range(3000)]
    rows = [{"prompt": " ".join(r.sample(pool, 1)) + f" {i}", "completion": r.choice(pool)} for i in range(20_000)]
    raw = write(tmp_path / "raw.jsonl", rows)
    command = [sys.executable, "-c", _MEASURE, str(raw), str(tmp_path / "out"), "0.8"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 300, "MiB; 144 were measured"
