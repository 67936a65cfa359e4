r"""Token ids of a text by its words, each of which the tokenizer is asked for once.

Byte-level BPE (GPT-2, Llama 3, Qwen, …) cuts a text at its added tokens, splits what is between them into words by a
regular expression, and merges bytes within a word only (Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019, 2.2; Sennrich et al., arXiv:1508.07909). So the ids of a text are those of its words, in order,
wherever they stand; and texts repeat their words.

It must give what the tokenizer gives, and never nearly so. It is used for the kinds of tokenizers that are understood
(`_splitting`), for texts of characters that are the same to both regular expression engines (`_PROVED`: those of
European languages), and only if the tokenizer itself, asked when the memo is made, splits each of these characters
like it beside letters, digits, white space and its like. Everything else is left to the tokenizer.
"""

import json
import re
import unicodedata
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

_PROVED = [*range(0x530), *range(0x2000, 0x2300)]  # Latin, Greek, Cyrillic; punctuation, currencies, arrows, operators
# GPT-2's, but for the order of alternatives that never match at the same place: the likeliest first
_GPT2 = r" ?\p{L}+|'(?:[stmd]|re|ve|ll)| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_DIGITS = r" ?\p{L}+|'(?:[stmd]|re|ve|ll)|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"  # each digit a word
_LONGEST = 64  # characters of a word that is kept: longer ones (sequences, keys) hardly come again, and fill the memory
_SPACES = "\t-\r \x85\xa0\u2000-\u200a\u2028\u2029\u202f\u205f"  # Unicode's; Python's \s has \x1c-\x1f as well


class WordMemo(dict[str, list[int]]):
    """The ids of words that have been met, and of the added tokens; forgets all words when there are too many, and does
    not keep long ones."""

    @staticmethod
    def of(tokenizer: "Tokenizer", most: int = 200_000) -> "WordMemo | None":
        """Of at most `most` words (200,000: about 40 MB). None: it is a tokenizer of another kind, or was found to
        give other ids."""
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        pattern, added = _splitting(state), _added(state)
        words = None if pattern is None else _in_python(pattern)
        if words is None or added is None or tokenizer.split_special_tokens:
            return None
        memo = WordMemo(tokenizer, words, added, state["normalizer"] is not None, most)
        return memo if memo._agrees(tokenizer) else None

    def __init__(
        self, tokenizer: "Tokenizer", words: re.Pattern[str], added: dict[str, int], composes: bool, most: int
    ) -> None:
        super().__init__()
        self._model = tokenizer.backend_tokenizer.model
        self._words = words
        self._added = {content: [number] for content, number in added.items()}
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(longest_first)})" if added else "(?!)()")
        self._composes = composes  # the tokenizer does: NFC
        self._most = most
        self._strange = re.compile(f"[^{_ranges(_PROVED)}]")
        self.update(self._added)

    def __missing__(self, word: str) -> list[int]:
        ids = [token.id for token in self._model.tokenize(_as_bytes(word))]
        if len(word) > _LONGEST:
            return ids
        if len(self) >= self._most:
            self.clear()
            self.update(self._added)
        self[word] = ids
        return ids

    def ids(self, text: str) -> list[int] | None:
        """Token ids of the text as the tokenizer gives them, no special tokens added; None: it has to be asked."""
        if not text.isascii() and (
            self._strange.search(text) or (self._composes and not unicodedata.is_normalized("NFC", text))
        ):
            return None
        words: list[str] = []
        for number, part in enumerate(self._cut.split(text)):
            if number % 2:  # an added token
                words.append(part)
            else:
                words += self._words.findall(part)
        return list(chain.from_iterable(map(self.__getitem__, words)))

    def _agrees(self, tokenizer: "Tokenizer") -> bool:
        backend = tokenizer.backend_tokenizer
        for text in map(_probe, map(chr, _PROVED)):
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
            if words != list(map(_as_bytes, self._words.findall(text))):
                return False
        text = " a ".join(self._added)
        return self.ids(text) in (None, backend.encode(text, add_special_tokens=False).ids)


def _probe(char: str) -> str:
    return f"{char}{char} {char}a{char}B7{char} '{char}'s{char}!{char}\n{char}\t{char}  {char}."


# --- which tokenizers ----------------------------------------------------------------------------------------------


def _splitting(state: dict[str, Any]) -> str | None:
    """The regular expression of a word, of a tokenizer.json; None: its ids are not those of words."""
    model, normalizer = state["model"], state["normalizer"]
    if model["type"] != "BPE" or model.get("dropout") or (normalizer or {"type": "NFC"}) != {"type": "NFC"}:
        return None
    match [_bare(step) for step in _steps(state["pre_tokenizer"])]:
        case [("ByteLevel", True)]:
            return _GPT2
        case [("Digits", True), ("ByteLevel", True)]:
            return _GPT2_DIGITS
        case [("Split", str(pattern)), ("ByteLevel", False)]:
            return pattern
        case _:
            return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _bare(step: dict[str, Any]) -> tuple[str, Any] | None:
    """Its kind and what of it matters; None: of no kind that is understood."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(use_regex)}:
            return "ByteLevel", use_regex
        case {"type": "Digits", "individual_digits": True}:
            return "Digits", True
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return "Split", pattern
        case _:
            return None


def _added(state: dict[str, Any]) -> dict[str, int] | None:
    """The added tokens; None: where they match depends on what is beside them, or on the order of looking."""
    tokens = state["added_tokens"]
    particular = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in tokens)
    if particular or len({token["normalized"] for token in tokens}) > 1:
        return None
    return {token["content"]: token["id"] for token in tokens}


# --- regular expressions -------------------------------------------------------------------------------------------


def _in_python(pattern: str) -> re.Pattern[str] | None:
    r"""The same for Python's `re`, which is twice as fast as engines that know \p{…}: classes are written out.

    None: it has what Python's `re` has not, or groups.
    """
    parts, inside = [], False
    for part in re.findall(r"\\[pP]\{\w+\}|\\.|\[\^?|.", pattern, re.DOTALL):
        if part[0] == "[" and inside:
            return None  # sets of sets
        inside = (inside or part[0] == "[") and part != "]"
        match part[:2]:
            case r"\p":
                members = _ranges([code for code in _PROVED if _category(code).startswith(part[3:-1])])
                if not members:
                    return None  # a script, or what else is no category
                parts.append(members if inside else f"[{members}]")
            case r"\s":
                parts.append(_SPACES if inside else f"[{_SPACES}]")
            case r"\S" if not inside:
                parts.append(f"[^{_SPACES}]")
            case _:
                parts.append(part)
    try:
        compiled = re.compile("".join(parts))
    except re.error:
        return None
    return None if compiled.groups else compiled


def _category(code: int) -> str:
    return unicodedata.category(chr(code))


def _ranges(codes: list[int]) -> str:
    """Of ascending code points, as they stand in a class."""
    runs: list[list[int]] = []  # first and last of each
    for code in codes:
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in runs)


def _as_bytes(word: str) -> str:
    """As byte-level BPE writes it, a character a byte (GPT-2's `bytes_to_unicode`): printable ones as they are."""
    return word.encode().decode("latin-1").translate(_BYTES)


_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}
