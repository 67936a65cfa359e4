"""The chat templates of well-known models, written from their documented formats, each with a tiny tokenizer of its
kind that has the template's special tokens."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
_CORPUS = ["system user assistant model\n\nhello what? the answer is 42\n\n\nyes no [INST] [/INST] Be kind."] * 5
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Style:
    """How a family of models splits text: `pieces` with ▁ for the space (SentencePiece) or bytes."""

    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    pieces: str = "bytes"  # bytes | llama (its pattern) | metaspace (▁ before the text) | replace (▁ for spaces only)
    added: tuple[str, ...] = ()  # tokens of their own that are not special
    strip_behind: tuple[str, ...] = field(default=())  # special tokens that swallow the white space behind them


_CHATML = Style(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
_QWEN = Style(_CHATML.specials, "<|im_end|>", None, "llama", ("<tool_call>", "</tool_call>", "<think>", "</think>"))
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
STYLES = {
    "chatml": _CHATML,
    "chatml_markers": _CHATML,
    "llama3": Style(_LLAMA3, "<|eot_id|>", "<|begin_of_text|>", "llama"),
    "qwen25": _QWEN,
    "qwen3": _QWEN,
    "mistral": Style(("<unk>", "<s>", "</s>"), "</s>", "<s>", "metaspace"),
    "gemma": Style(("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>", "replace"),
    "phi3": Style(("<unk>", "<s>", "<|endoftext|>", *_PHI3), "<|endoftext|>", "<s>", "metaspace", (), _PHI3),
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of STYLES, with its template."""
    style = STYLES[name]
    return with_template(style, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n"))


def with_template(style: Style, template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of a style with another template, or none."""
    backend = _bytes(style) if style.pieces in ("bytes", "llama") else _sentence_pieces(style)
    backend.add_special_tokens(
        [AddedToken(token, rstrip=token in style.strip_behind, normalized=False) for token in style.specials]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in style.added])
    if style.bos:
        number = backend.token_to_id(style.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", special_tokens=[(style.bos, number)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=style.eos, bos_token=style.bos)
    fast.chat_template = template
    return fast


def _bytes(style: Style) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style.pieces == "bytes")
    split = pre_tokenizers.Split(Regex(_LLAMA), "isolated")
    backend.pre_tokenizer = bytes_only if style.pieces == "bytes" else pre_tokenizers.Sequence([split, bytes_only])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return backend


def _sentence_pieces(style: Style) -> Tokenizer:
    """Merges of characters with ▁ for the space; other characters are bytes."""
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learning.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    vocabulary = dict(learning.get_vocab())
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in json.loads(learning.to_str())["model"]["merges"]]
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = Tokenizer(model)
    if style.pieces == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
