"""The memo gives what the tokenizer gives, or says that it cannot."""

from pathlib import Path
from random import Random

import pytest
from support.chat_tokenizers import STYLES, tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import distributed_ft
from distributed_ft.data.chat import render_all
from distributed_ft.data.examples import Example, Message
from distributed_ft.data.word_memo import WordMemo
from distributed_ft.model.load import load_tokenizer

BYTES = [name for name, style in STYLES.items() if style.pieces in ("bytes", "llama")]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = [
    *"abz AZ09 _'\"<>|/\\.,;:!?-+=()[]{}\t\n\r\x00\x1c\x1f\x7f\x85\xa0¼²ªßéÄſıŁΩжЯ̈́ͅ\u2003\u2028\u202f—…’“”€→≤",
    *(" ", "  ", "   ", "\n\n", " \n", "\r\n", "'s", "'LL", "'ſ", "the ", "answer", "<|im_end|>", "<|im_start|>"),
    *("42", "1234567", "😀", "日本", "한", "e\u0301", "\ufeff", "<|", "|>", "<think>", "</s>"),
]


def byte_level(pattern: str | None = GPT4O) -> Tokenizer:
    """Learnt from nothing: a token a byte."""
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, BYTE_LEVEL])
    return backend


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def texts(seed: int, count: int = 1500) -> list[str]:
    rng = Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 30))) for _ in range(count)]


def assert_same(tok: PreTrainedTokenizerFast, memo: WordMemo | None, few: int = 100) -> None:
    assert memo is not None
    told = 0
    for text in texts(1):
        ids = memo.ids(text)
        assert ids is None or ids == tok.backend_tokenizer.encode(text, add_special_tokens=False).ids, repr(text)
        told += ids is not None
    assert told > few, "so little is told that it is of no use"


@pytest.mark.parametrize("name", BYTES)
def test_ids_are_those_of_the_tokenizer(name: str) -> None:
    assert_same(tokenizer(name), WordMemo.of(tokenizer(name)))


def test_of_the_embedded_base() -> None:
    tok = load_tokenizer(str(Path(distributed_ft.__file__).parent / "assets" / "base"))
    assert_same(tok, WordMemo.of(tok))


def test_of_a_pattern_with_every_category_of_letters() -> None:
    assert_same(fast(byte_level()), WordMemo.of(fast(byte_level())))


def test_a_tokenizer_that_composes_characters() -> None:
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    memo = WordMemo.of(fast(backend))
    assert_same(fast(backend), memo)
    assert memo is not None
    assert memo.ids("caf\u00e9") is not None
    assert memo.ids("cafe\u0301") is None, "it is another text once it is composed"


def test_words_are_forgotten_rather_than_fill_the_memory() -> None:
    memo = WordMemo.of(tokenizer("llama3"), most=len(STYLES["llama3"].specials) + 3)
    assert_same(tokenizer("llama3"), memo)
    assert memo is not None
    assert len(memo) <= len(STYLES["llama3"].specials) + 3


def test_long_words_are_told_and_not_kept() -> None:
    tok = tokenizer("llama3")
    memo = WordMemo.of(tok)
    assert memo is not None
    text = "ACGT" * 5000
    assert memo.ids(text) == tok.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert text not in memo


@pytest.mark.parametrize("text", ["日本", "😀 yes", "\u0531"])
def test_characters_that_it_was_not_proved_on(text: str) -> None:
    memo = WordMemo.of(tokenizer("llama3"))
    assert memo is not None
    assert memo.ids(text) is None


@pytest.mark.parametrize("name", sorted(set(STYLES) - set(BYTES)))
def test_tokenizers_of_another_kind(name: str) -> None:
    assert WordMemo.of(tokenizer(name)) is None


def strange() -> dict[str, Tokenizer]:
    """Byte-level as well, and yet their ids are not those of words, or not of the words that Python would find."""
    found = {
        "no words": byte_level(None),
        "the engines differ about \\w": byte_level(r"\w+|\W"),
        "sets of sets": byte_level(r"[[:alpha:]]+|[^[:alpha:]]+"),
        "a script": byte_level(r"\p{Greek}+|\P{Greek}+"),
        "leaves characters out": byte_level(r"\p{L}+|\p{N}+"),
        "groups": byte_level(r"(\p{L}+|\P{L}+)"),
        "not Python's": byte_level(r"\p{L}+|\P{L}+"),
    }
    for name, token in {
        "strips": AddedToken("<s>", lstrip=True, normalized=False),
        "single word": AddedToken("yes", single_word=True, normalized=False),
    }.items():
        found[name] = byte_level()
        found[name].add_tokens([token])
    found["two ways to look"] = byte_level()
    found["two ways to look"].add_tokens([AddedToken("<a>", normalized=True), AddedToken("a>b", normalized=False)])
    found["lower case"] = byte_level()
    found["lower case"].normalizer = normalizers.Lowercase()
    found["a space before"] = byte_level()
    found["a space before"].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found["at random"] = byte_level()
    found["at random"].model.dropout = 0.5
    return found


@pytest.mark.parametrize("kind", strange())
def test_what_is_not_understood_is_left_to_the_tokenizer(kind: str) -> None:
    assert WordMemo.of(fast(strange()[kind])) is None


@pytest.mark.parametrize("name", BYTES)
def test_rows_are_rendered_alike_with_and_without(name: str) -> None:
    tok = tokenizer(name)
    said = texts(2, 200)
    rows = [
        Example(f"{i}", (Message("user", f"Q {ask}"), Message("assistant", f"A {answer}")), i, "", None)
        for i, (ask, answer) in enumerate(zip(said[::2], said[1::2], strict=True))
    ]
    assert list(render_all(tok, rows, memo=WordMemo.of(tok))) == list(render_all(tok, rows))
