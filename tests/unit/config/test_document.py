"""YAML 1.2's numbers and words, and overrides."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.config.document import Document, override, parse, parse_override
from distributed_ft.config.load import load
from distributed_ft.errors import ConfigError

SCALARS: dict[str, Any] = {
    "1e-4": 1e-4,
    "1E+3": 1000.0,
    ".5": 0.5,
    "5.": 5.0,
    "-1.5e-3": -0.0015,
    "12": 12,
    "+12": 12,
    "017": 17,
    "0o17": 15,
    "0x1F": 31,
    "1_000": "1_000",
    "0b11": "0b11",
    "on": "on",
    "off": "off",
    "yes": "yes",
    "no": "no",
    "true": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "2024-01-02": "2024-01-02",
    "2024-01-02T03:04:05Z": "2024-01-02T03:04:05Z",
    "12:30:45": "12:30:45",
    '"1e-4"': "1e-4",
    "'true'": "true",
    ".inf": math.inf,
    "=": "=",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    read = parse(f"key: {text}", Path("run.yaml")).value["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_number_of_five_thousand_digits_stays_text() -> None:
    assert parse(f"key: {'9' * 5000}", Path("run.yaml")).value["key"] == "9" * 5000


def test_every_key_and_item_knows_its_line() -> None:
    document = parse("a: 1\n\nb:\n  c: [x,\n      y]\n  d:\n    - e: 1\n", Path("run.yaml"))
    assert document.lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "d"): 6,
        ("b", "d", 0): 7,
        ("b", "d", 0, "e"): 7,
    }


def test_a_byte_order_mark_is_no_part_of_the_first_key(folder: Path) -> None:
    text = "name: x\nmodel: {base: ./base}\ndata: {train: train.jsonl}\n"
    (folder / "run.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(folder / "run.yaml").config.name == "x"


OVERRIDES: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "optim.lr=1e-4": (("optim", "lr"), 1e-4),
    "seed=3": (("seed",), 3),
    "data.train=[a.jsonl,b.jsonl]": (("data", "train"), ["a.jsonl", "b.jsonl"]),
    "data.train[1].weight=0.5": (("data", "train", 1, "weight"), 0.5),
    "method={type: full}": (("method",), {"type": "full"}),
    "model.base=a/b=c": (("model", "base"), "a/b=c"),
    "optim.max_steps=null": (("optim", "max_steps"), None),
    "data.packing=yes": (("data", "packing"), "yes"),
}


@pytest.mark.parametrize(("setting", "parsed"), OVERRIDES.items())
def test_an_override_is_read_by_the_rules_of_the_file(setting: str, parsed: Any) -> None:
    assert parse_override(setting) == parsed


MALFORMED = {
    "lr": "'lr': an override is key=value, for example optim.lr=1e-4",
    "=3": "'=3': '' is not a key; write it like optim.lr or data.train[0].weight",
    "optim..lr=3": "'optim..lr=3': 'optim..lr' is not a key",
    "optim.lr=": "'optim.lr=': there is no value after '='; write null for none",
    "optim.lr=[1": "'optim.lr=[1':1: not valid YAML",
    "optim={lr: 1, lr: 2}": "given twice",
}


@pytest.mark.parametrize(("setting", "said"), MALFORMED.items())
def test_a_malformed_override_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(setting)
    assert said in str(caught.value)


def _document() -> Document:
    return parse("seed: 1\noptim:\ndata: {train: [a, {path: b}]}\n", Path("run.yaml"))


def test_overrides_replace_extend_and_make_sections_in_order() -> None:
    document = _document()
    assert override(document, ["seed=2", "seed=3", "optim.lr=1", "data.train[1].path=c", "method.type=full"]) == []
    assert document.value == {
        "seed": 3,
        "optim": {"lr": 1},
        "data": {"train": ["a", {"path": "c"}]},
        "method": {"type": "full"},
    }


def test_an_override_that_leads_nowhere_is_refused() -> None:
    assert override(_document(), ["seed.x=1", "data.train[2]=c", "seed[0]=1"]) == [
        "seed.x: seed is 1, which has no key 'x'",
        "data.train[2]: there is no data.train[2] (data.train is a list of 2)",
        "seed[0]: there is no seed[0] (seed is no list)",
    ]


def test_an_override_beats_the_file_and_may_replace_a_whole_section(run_yaml: Callable[[str], Path]) -> None:
    path = run_yaml("MINIMAL\nmethod: {type: lora, rank: 8}\noptim: {lr: 1}\n")
    config = load(path, ["optim.lr=2e-5", "method={type: full}", "strategy.type=fsdp"]).config
    assert (config.optim.lr, config.method.type, config.strategy.type) == (2e-5, "full", "fsdp")


def test_another_method_over_keys_of_the_old_one_is_refused_with_the_remedy(problems: Callable[..., list[str]]) -> None:
    assert problems("MINIMAL\nmethod: {type: lora, rank: 8}\n", "method.type=full") == [
        "run.yaml:4: method.rank: 8 belongs to type 'lora' or 'qlora', not to 'full'; "
        "remove it, or replace the whole section: 'method={type: full}'"
    ]


def test_an_error_about_an_overridden_key_blames_no_line_of_the_file(problems: Callable[..., list[str]]) -> None:
    assert problems("MINIMAL\noptim: {lr: 1}\n", "optim.lr=fast") == ["optim.lr: 'fast' is not a number"]
