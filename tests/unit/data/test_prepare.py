"""Data is tokenised once, is never half there, and its report says what became of every row."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pytest

from distributed_ft.config.schema import Source
from distributed_ft.data import pool
from distributed_ft.data import prepare as module
from distributed_ft.data.chat import render
from distributed_ft.data.order import Order
from distributed_ft.data.prepare import open_prepared, prepare
from distributed_ft.data.reading import read_examples
from distributed_ft.data.store import Rows, entry_problem, write_store
from distributed_ft.errors import ConfigError, DataError


def row(question, answer, **more):
    return {"prompt": question, "completion": answer, **more}


def unlearned(question, answer):
    turn = {"role": "assistant", "content": answer, "weight": 0}
    return {"messages": [{"role": "user", "content": question}, turn]}


def numbered(count, tag="q"):
    return [row(f"{tag} {i}?", f"answer {i * i}") for i in range(count)]


@pytest.fixture
def train(write_rows):
    return str(write_rows("train.jsonl", numbered(40)))


def snapshot(directory):
    return {p: p.stat().st_mtime_ns for p in sorted(directory.rglob("*"))}


def all_ids(store):
    return [store.id(i) for i in range(len(store))]


@pytest.fixture
def no_tokenising(monkeypatch):
    """From its call on, tokenising anything fails the test."""

    def forbid():
        def render_all(*_):
            raise AssertionError("tokenised again")

        monkeypatch.setattr(module, "render_all", render_all)

    return forbid


def test_stores_hold_what_rendering_gives(train, tokenizer, make_config, tmp_path):
    prepared = prepare(make_config(train=train, seq_len=64), tokenizer, tmp_path / "cache")
    (store,) = prepared.train
    examples = read_examples(train)
    assert all_ids(store) == [e.id for e in examples]
    for i, example in enumerate(examples):
        rendered = render(tokenizer, example.messages)
        tokens, supervised = store.example(i)
        assert tokens.tolist() == rendered.ids
        assert supervised.tolist() == rendered.supervised
    assert store.lengths.tolist() == [len(render(tokenizer, e.messages).ids) for e in examples]
    assert (tokens.dtype, supervised.dtype) == (np.int32, np.bool_)


def test_a_second_call_tokenises_nothing_and_writes_nothing(train, tokenizer, make_config, tmp_path, no_tokenising):
    cache = tmp_path / "cache"
    first = prepare(make_config(train=train, seq_len=64, validation=0.1), tokenizer, cache)
    before = snapshot(cache)
    no_tokenising()
    tokenizer(["a", "longer text"], truncation=True, max_length=3)  # leaves its mark in the backend
    second = prepare(make_config(train=train, seq_len=64, validation=0.1), tokenizer, cache)
    assert snapshot(cache) == before
    assert second.digest == first.digest
    assert second.report == first.report


def test_the_order_of_rows_is_no_reason_to_tokenise_again(train, tokenizer, make_config, tmp_path, no_tokenising):
    prepare(make_config(train=train, seq_len=64), tokenizer, tmp_path)
    no_tokenising()
    weighted = make_config(train=(Source(path=train, weight=2.0),), seq_len=64, packing=False, seed=5)
    assert prepare(weighted, tokenizer, tmp_path).weights == (2.0,)


@pytest.mark.parametrize("change", ["rows", "seq_len", "over_long", "validation", "template", "vocabulary", "version"])
def test_whatever_the_tokens_depend_on_makes_a_new_entry(
    change, train, tokenizer, tokenizers, make_config, write_rows, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    settings = {"train": train, "seq_len": 64}
    prepare(make_config(**settings), tokenizer, cache)
    assert len(list(cache.iterdir())) == 1
    if change == "rows":
        write_rows("train.jsonl", numbered(41))
    elif change == "template":
        tokenizer = tokenizers["llama3"]
    elif change == "vocabulary":
        tokenizer = type(tokenizer)(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
            eos_token="</s>",
            chat_template=tokenizer.chat_template,
        )
        tokenizer.add_tokens(["answer"])
    elif change == "version":
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    else:
        settings |= {"seq_len": {"seq_len": 65}, "over_long": {"over_long": "drop"}}.get(change, {"validation": 0.2})
    prepare(make_config(**settings), tokenizer, cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "cut array", "changed byte", "missing array"])
def test_a_damaged_entry_is_rebuilt(damage, train, tokenizer, make_config, tmp_path):
    cache = tmp_path / "cache"
    config = make_config(train=train, seq_len=64)
    first = prepare(config, tokenizer, cache)
    digest, tokens, manifest = first.digest, first.directory / "train-0.arrow", first.directory / "manifest.json"
    content = tokens.read_bytes()
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_bytes(manifest.read_bytes()[:50])
    elif damage == "cut array":
        tokens.write_bytes(content[:-7])
    elif damage == "changed byte":
        tokens.write_bytes(content[:400] + bytes([content[400] ^ 1]) + content[401:])
    else:
        tokens.unlink()
    assert entry_problem(first.directory, content=True)
    second = prepare(config, tokenizer, cache)
    assert second.digest == digest
    assert tokens.read_bytes() == content
    assert [p.name for p in cache.iterdir()] == [first.directory.name]


def test_a_killed_preparation_leaves_nothing_that_counts(train, tokenizer, make_config, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    config = make_config(train=train, seq_len=64)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", die)
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # a kill cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tokenizer, cache)
    (leftover,) = cache.iterdir()
    assert leftover.name.startswith(".")
    prepared = prepare(config, tokenizer, cache)
    assert leftover.exists(), "it may belong to a process that is alive"
    os.utime(leftover, (0, 0))
    (prepared.directory / "manifest.json").unlink()
    prepare(config, tokenizer, cache)
    assert not leftover.exists(), "a day later it does not"


def test_preparations_at_the_same_time_do_not_clash(train, tokenizer, make_config, tmp_path):
    config = make_config(train=train, seq_len=64)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: prepare(config, tokenizer, tmp_path / "cache"), range(6)))
    assert len({prepared.digest for prepared in results}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_rank_opens_what_was_prepared_and_sees_the_same_batches(train, tokenizer, make_config, tmp_path):
    config = make_config(train=train, seq_len=64, validation=0.1)
    prepared = prepare(config, tokenizer, tmp_path / "cache")
    manifest = prepared.write(tmp_path / "run" / "data")
    opened = open_prepared(manifest)
    assert (opened.digest, opened.weights, opened.report) == (prepared.digest, prepared.weights, prepared.report)
    assert opened.validation is not None
    order = Order.of(config, prepared)
    program = (
        "import sys; from distributed_ft.config.schema import RunConfig; from distributed_ft.data.order import Order\n"
        "from distributed_ft.data.store import open_prepared\n"
        "order = Order.of(RunConfig.model_validate_json(sys.argv[2]), open_prepared(sys.argv[1]))\n"
        "print([order.digest(s) for s in range(order.total_steps)])\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program, str(manifest), config.model_dump_json(by_alias=True)]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert printed.stdout.strip() == str([order.digest(s) for s in range(order.total_steps)]), printed.stderr


def test_a_rank_that_finds_the_cache_gone_says_what_to_do(train, tokenizer, make_config, tmp_path):
    prepared = prepare(make_config(train=train, seq_len=64), tokenizer, tmp_path / "cache")
    manifest = prepared.write(tmp_path / "data")
    (prepared.directory / "train-0.arrow").unlink()
    with pytest.raises(DataError, match=r"train-0.arrow: missing.*prepared anew"):
        open_prepared(manifest)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "directory": str(tmp_path / "nowhere")}))
    with pytest.raises(DataError, match="prepared anew"):
        open_prepared(manifest)
    with pytest.raises(DataError, match="prepared anew"):
        open_prepared(tmp_path / "missing" / "manifest.json")


def test_long_rows_are_cut_dropped_or_refused_as_asked_and_counted(tokenizer, make_config, write_rows, tmp_path):
    rows = [row("short?", "yes"), row("x" * 200, "never seen"), row("go on", "9" * 200)]
    path = str(write_rows("long.jsonl", rows))
    cut = prepare(make_config(train=path, seq_len=50), tokenizer, tmp_path / "c")
    assert [len(cut.train[0]), max(cut.train[0].lengths)] == [3, 50]
    found = {finding["id"]: finding for finding in cut.report["findings"]}
    cut_rows = found["answer.truncated.seq_len"]
    assert (cut_rows["count"], cut_rows["rows"], cut_rows["path"]) == (2, [2, 3], path)
    assert found["answer.truncated.lost"]["rows"] == [2]
    assert (cut.report["rows_in"], cut.report["rows_used"]) == (3, 3)

    dropped = prepare(make_config(train=path, seq_len=50, over_long="drop"), tokenizer, tmp_path / "c")
    assert all_ids(dropped.train[0]) == ["long:1"]
    assert (dropped.report["rows_in"], dropped.report["rows_used"]) == (3, 1)
    assert [(f["id"], f["severity"], f["count"]) for f in dropped.report["findings"]] == [
        ("answer.truncated.dropped", "warning", 2)
    ]

    split = prepare(make_config(train=path, seq_len=50, over_long="split"), tokenizer, tmp_path / "c")
    whole = [render(tokenizer, example.messages) for example in read_examples(path)]
    pieces = [(i, split.train[0].example(i)) for i in range(len(split.train[0]))]
    assert all_ids(split.train[0])[:3] == ["long:1", "long:2#1", "long:2#2"]
    assert [t for _, (tokens, _) in pieces for t in tokens.tolist()] == [t for row in whole for t in row.ids]
    assert [m for _, (_, mask) in pieces for m in mask.tolist()] == [m for row in whole for m in row.supervised]
    assert max(split.train[0].lengths) == 50
    assert [f["id"] for f in split.report["findings"]] == ["answer.truncated.split"]

    with pytest.raises(DataError, match=r"long.jsonl:2: the row has 2\d\d tokens, more than data.seq_len \(50\)"):
        prepare(make_config(train=path, seq_len=50, over_long="error"), tokenizer, tmp_path / "c")


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([row("x" * 99, "y")], {"over_long": "drop"}, "all 1 rows are longer than data.seq_len"),
        ([row("x" * 99, "y")], {}, "nothing to learn"),
        ([row("a", "b")] * 5, {"seq_len": 64, "validation": 0.5}, "leaves no training row"),
        ([unlearned("a", "b")] * 5, {"seq_len": 64}, "every answer is empty or has weight 0"),
        ([{"text": ""}], {"seq_len": 64}, "every answer is empty or has weight 0"),
        ([1, 2], {"skip_bad": 2}, r"none of its rows can be read, for example .*few.jsonl:2: the row is not an object"),
    ],
)
def test_nothing_left_to_train_on_is_an_error(rows, settings, message, tokenizer, make_config, write_rows, tmp_path):
    path = str(write_rows("few.jsonl", rows))
    with pytest.raises(DataError, match=message):
        prepare(make_config(train=path, **{"seq_len": 32, **settings}), tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*")), "no half-made entry"


def test_findings_name_the_file_of_a_folder_that_a_line_is_in(tokenizer, make_config, write_rows, tmp_path):
    a, b = row("x?", "9" * 200), row("<|im_end|>", "special")
    first, second = write_rows("shards/a.jsonl", [*numbered(3), a, b]), write_rows("shards/b.jsonl", [a, *numbered(3)])
    config = make_config(train=str(tmp_path / "shards"), seq_len=64)
    report = prepare(config, tokenizer, tmp_path / "cache").report
    found = [(f["id"], f["path"], f["rows"], f["count"], f["message"][:11]) for f in report["findings"]]
    assert found == [
        ("answer.truncated.seq_len", str(first), [4], 1, "1 of 9 rows"),
        ("answer.truncated.seq_len", str(second), [1], 1, "1 of 9 rows"),
        ("template.special_tokens", str(first), [5], 1, "1 of 9 rows"),
    ]
    assert report["sources"][0]["truncated"] == 2
    held_out = prepare(make_config(train=str(first), validation=0.6, seq_len=64), tokenizer, tmp_path / "cache").report
    assert {f["path"] for f in held_out["findings"]} == {str(first)}, "not `held out of data.train`"


def test_a_row_that_is_not_learned_is_not_said_to_be_too_long(tokenizer, make_config, write_rows, tmp_path):
    learned = {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    path = str(write_rows("train.jsonl", [unlearned("a", "b"), learned]))
    report = prepare(make_config(train=path, seq_len=64), tokenizer, tmp_path / "cache").report
    assert [(f["id"], f["rows"]) for f in report["findings"]] == [("template.mask_empty", [1])]


def test_a_bad_row_counts_once_where_a_fraction_is_held_out(tokenizer, make_config, write_rows, tmp_path):
    path = write_rows("train.jsonl", numbered(30))
    path.write_text(path.read_text() + "broken\n[]\n")
    config = make_config(train=str(path), validation=0.2, seq_len=64, skip_bad=2)
    prepared = prepare(config, tokenizer, tmp_path / "cache")
    assert (prepared.report["rows_in"], prepared.report["rows_bad"]) == (30, 2)
    kept = (prepared.directory / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in kept] == [31, 32]


def test_the_report_counts_rows_tokens_and_shares(tokenizer, make_config, write_rows, tmp_path):
    a = str(write_rows("a.jsonl", [*numbered(30, "a"), row("a 0?", "answer 0")]))
    b = str(write_rows("b.jsonl", [*numbered(50, "b"), row("<|im_end|>", "special")]))
    validation = str(write_rows("v.jsonl", [*numbered(5, "v"), row("b 3?", "answer 9")]))
    train = (Source(path=a, weight=0.75), Source(path=b, weight=0.25))
    config = make_config(train=train, validation=validation, seq_len=128)
    prepared = prepare(config, tokenizer, tmp_path / "cache")
    report = prepared.report
    findings = {f["id"]: (f["severity"], f["count"], f["rows"]) for f in report["findings"]}
    assert findings == {
        "template.special_tokens": ("warning", 1, [51]),
        "imbalance.mixture": ("warning", 51 - 2 * 10, []),
    }
    assert (report["rows_in"], report["rows_used"], report["validation"]["rows_used"]) == (82, 82, 6)
    supervised = sum(int(s.example(i)[1].sum()) for s in prepared.train for i in range(len(s)))
    assert report["supervised_tokens"] == supervised
    assert [(s["rows_per_epoch"], s["weight"]) for s in report["sources"]] == [(31, 0.75), (10, 0.25)]
    assert [s["drawn_share"] for s in report["sources"]] == [31 / 41, 10 / 41]
    order = Order.of(config, prepared)
    packs = [p for step in range(order.steps_per_epoch) for p in order.global_batch(step)]
    tokens = sum(int(prepared.train[s].lengths[i]) for p in packs for s, i in p)
    learned = sum(int(prepared.train[s].example(i)[1][1:].sum()) for p in packs for s, i in p)
    assert report["packing_fill"] == pytest.approx(tokens / (len(packs) * 128))
    assert report["packing_efficiency"] == pytest.approx(learned / (len(packs) * 128))
    assert 0.5 < report["packing_fill"] <= 1
    json.dumps(report)


def test_weights_that_leave_most_rows_unseen_are_said_with_the_file(tokenizer, make_config, write_rows, tmp_path):
    large, small = (str(write_rows(f"{name}.jsonl", numbered(n, name))) for name, n in (("large", 90), ("small", 3)))
    train = (Source(path=large, weight=0.85), Source(path=small, weight=0.15))
    report = prepare(make_config(train=train, seq_len=128), tokenizer, tmp_path / "cache").report
    (finding,) = report["findings"]
    assert (finding["id"], finding["severity"]) == ("imbalance.mixture", "warning")
    assert finding["path"] == large
    assert finding["message"].startswith("its share draws 17 of 90 rows in an epoch")
    enough = make_config(train=train, seq_len=128, optim={"epochs": 3})
    assert prepare(enough, tokenizer, tmp_path / "cache").report["findings"] == []


def test_a_fraction_is_held_out_by_content(tokenizer, make_config, write_rows, tmp_path):
    rows = numbered(60)
    a, b = str(write_rows("a.jsonl", rows)), str(write_rows("b.jsonl", rows[:20] + numbered(20, "other")))
    config = make_config(train=(a, b), validation=0.2, seq_len=64)
    prepared = prepare(config, tokenizer, tmp_path / "cache")
    assert prepared.validation is not None
    sizes = [len(prepared.train[0]), len(prepared.train[1]), len(prepared.validation)]
    assert sum(sizes) == prepared.report["rows_in"] == 100
    assert sum(source["held_out"] for source in prepared.report["sources"]) == sizes[2]
    assert 20 <= sizes[2] <= 21, "20%, and one more when the last row stands twice"
    tokens = {tuple(prepared.validation.example(i)[0]) for i in range(sizes[2])}
    for store in prepared.train:
        assert not tokens & {tuple(store.example(i)[0]) for i in range(len(store))}, "equal rows stay together"
    # neither the order of the files nor the seed moves a row
    other = prepare(make_config(train=(b, a), validation=0.2, seq_len=64, seed=9), tokenizer, tmp_path / "cache")
    assert other.validation is not None
    assert tokens == {tuple(other.validation.example(i)[0]) for i in range(len(other.validation))}


def test_rows_that_ask_the_same_are_held_out_together(tokenizer, make_config, write_rows, tmp_path):
    rows = [row(f"What is {i % 8}?" if i % 2 else f"what  is {i % 8}?", f"It is {i}.") for i in range(80)]
    train = str(write_rows("train.jsonl", rows))
    prepared = prepare(make_config(train=train, validation=0.25, seq_len=64), tokenizer, tmp_path / "cache")

    def asked(store):
        texts = [tokenizer.decode(store.example(i)[0]) for i in range(len(store))]
        return {text.lower().split("?")[0].split()[-1] for text in texts}

    assert prepared.validation is not None
    assert asked(prepared.validation) | asked(prepared.train[0]) == set("01234567")
    assert not asked(prepared.validation) & asked(prepared.train[0])


def test_what_all_rows_ask_does_not_keep_them_together(tokenizer, make_config, write_rows, tmp_path):
    for rows in ([{"text": f"line {i}"} for i in range(20)], [row("Tell me a joke.", f"joke {i}") for i in range(20)]):
        train = str(write_rows("train.jsonl", rows))
        prepared = prepare(make_config(train=train, validation=0.2, seq_len=64), tokenizer, tmp_path / "cache")
        assert [len(prepared.train[0]), len(prepared.validation or [])] == [16, 4]


def test_a_small_file_still_gives_one_validation_row(tokenizer, make_config, write_rows, tmp_path):
    path = str(write_rows("small.jsonl", numbered(5)))
    prepared = prepare(make_config(train=path, validation=0.01, seq_len=64), tokenizer, tmp_path / "cache")
    assert prepared.validation is not None
    assert (len(prepared.train[0]), len(prepared.validation)) == (4, 1)


def test_faults_in_files_and_tokenizers_come_before_anything_is_written(
    tokenizers, tokenizer, make_config, write_rows, tmp_path
):
    good = str(write_rows("good.jsonl", numbered(3)))
    bad = str(write_rows("bad.jsonl", [row("a", "b"), {"prompt": "c"}]))
    cache = tmp_path / "cache"
    (tmp_path / "empty").mkdir()
    for settings, message in [
        ({"train": (good, bad)}, "bad.jsonl:2: missing column 'completion'"),
        ({"train": good, "validation": bad}, "bad.jsonl:2: missing column 'completion'"),
        ({"train": good + "x"}, "no such file; did you mean 'good.jsonl'"),
        ({"train": str(tmp_path / "empty")}, "a directory without data files"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare(make_config(**settings), tokenizer, cache)
    with pytest.raises(ConfigError, match="no chat template"):
        prepare(make_config(train=good), tokenizers["none"], cache)
    assert not list(cache.glob("*"))


def test_a_full_disk_is_one_message_and_no_half_made_entry(train, tokenizer, make_config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_store", full)
    with pytest.raises(DataError, match=r"cannot be written here \(No space left on device\); free some space"):
        prepare(make_config(train=train, seq_len=64), tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cores_change_nothing(tokenizer, make_config, write_rows, tmp_path, monkeypatch):
    path = str(write_rows("many.jsonl", numbered(5000)))
    alone = prepare(make_config(train=path, seq_len=64, validation=0.1), tokenizer, tmp_path / "alone")
    monkeypatch.setattr(pool, "_ALONE", 0.0)
    monkeypatch.setattr(pool, "num_cores", lambda: 3)
    together = prepare(make_config(train=path, seq_len=64, validation=0.1), tokenizer, tmp_path / "together")
    assert together.digest == alone.digest
    assert together.report == alone.report


def test_the_digest_is_of_the_rows_and_not_of_how_they_were_batched(tmp_path):
    rows = [(f"r{i}", list(range(i % 7 + 1)), [i % 2 == 0] * (i % 7 + 1)) for i in range(20)]
    digests = {
        write_store(tmp_path / f"{size}.arrow", [Rows.of(rows[i : i + size]) for i in range(0, 20, size)])
        for size in (1, 3, 20)
    }
    assert len(digests) == 1
    changed = [*rows[:-1], (rows[-1][0], rows[-1][1], [not m for m in rows[-1][2]])]
    assert write_store(tmp_path / "changed.arrow", [Rows.of(changed)]) not in digests


def test_any_arrow_reader_opens_a_store(train, tokenizer, make_config, tmp_path):
    prepared = prepare(make_config(train=train, seq_len=64), tokenizer, tmp_path / "cache")
    table = pyarrow.ipc.open_file(str(prepared.train[0].path)).read_all().to_pylist()
    assert [row["id"] for row in table] == all_ids(prepared.train[0])
    assert table[3]["tokens"] == prepared.train[0].example(3)[0].tolist()


def test_rows_that_repeat_an_id_get_another(tokenizer, make_config, write_rows, tmp_path):
    path = str(write_rows("ids.jsonl", [row("a?", "b", id="x"), row("c?", "d", id="x"), row("e?", "f", id="y")]))
    prepared = prepare(make_config(train=path, seq_len=64), tokenizer, tmp_path)
    assert all_ids(prepared.train[0]) == ["x", "x@2", "y"]


def test_rows_that_cannot_be_read_are_counted_and_kept_aside(tokenizer, make_config, tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in numbered(5)) + '{"prompt": "half', "utf-8")
    with pytest.raises(DataError, match=r"torn.jsonl:6: "):
        prepare(make_config(train=str(path), seq_len=64), tokenizer, tmp_path / "cache")
    prepared = prepare(make_config(train=str(path), seq_len=64, skip_bad=1), tokenizer, tmp_path / "cache")
    assert (prepared.report["rows_in"], prepared.report["rows_bad"], len(prepared.train[0])) == (5, 1, 5)
    prepared.write(tmp_path / "data")
    (kept,) = map(json.loads, (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines())
    assert (kept["path"], kept["line"], kept["raw"]) == (str(path), 6, '{"prompt": "half')


def test_only_the_last_answer_is_learned_where_asked(tokenizer, make_config, write_rows, tmp_path):
    turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, ("a?", "b", "c?", "d"), strict=True)]
    path = str(write_rows("turns.jsonl", [{"messages": turns}]))
    both = prepare(make_config(train=path, seq_len=64), tokenizer, tmp_path)
    last = prepare(make_config(train=path, seq_len=64, supervise="last"), tokenizer, tmp_path)
    (ids, all_mask), (same, last_mask) = both.train[0].example(0), last.train[0].example(0)
    assert ids.tolist() == same.tolist()
    assert 0 < last_mask.sum() == all_mask.sum() / 2
