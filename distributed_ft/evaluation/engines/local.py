"""The engine in this process: a base by transformers, on a CPU or a GPU."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

from distributed_ft.artifacts import sha256_of
from distributed_ft.data.examples import Message
from distributed_ft.errors import EngineError
from distributed_ft.evaluation.engines.decoding import generate
from distributed_ft.evaluation.engines.prompts import Prompts
from distributed_ft.evaluation.engines.reading import judge, log_probabilities
from distributed_ft.evaluation.engines.weights import Weights
from distributed_ft.evaluation.task import Generate, Request, Response
from distributed_ft.model.load import MODEL_FILES, base_directory


class TransformersEngine:
    """The base is loaded once, when first needed; adapters are put on and taken off, full weights replace it."""

    def __init__(
        self,
        base: str,
        dtype: Literal["bf16", "fp32"],
        batch_size: int,
        bits: BitsAndBytesConfig | None = None,
        device: torch.device | None = None,
        batch_tokens: int = 0,
    ) -> None:
        """
        Args:
            base: a directory in Hugging Face format, or a hub id.
            batch_size: rows that are computed at once; more, while they have at most `batch_tokens` tokens.
            bits: a base that was quantised for training answers as it was trained.
            device: default: the first GPU, or the CPU.

        Raises ConfigError when base or tokenizer cannot be read.
        """
        self.arguments: dict[str, Any] = {  # for one like it
            "base": base,
            "dtype": dtype,
            "batch_size": batch_size,
            "bits": bits,
            "batch_tokens": batch_tokens,
        }
        self.base = base_directory(base)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype, self._bits = dtype, bits
        self.prompts = Prompts(self.base, batch_size, batch_tokens)
        self._weights = Weights(self.base, dtype, bits, self.device)

    def use(self, weights: Path | None, strength: float = 1.0) -> None:
        """See `Engine`. Raises CheckpointError when the weights do not fit the base, whatever the difference."""
        self.prompts.num_virtual = 0
        self._weights.use(weights, strength)
        self.prompts.num_virtual = self._weights.num_virtual

    @property
    def digest(self) -> str:
        """Of its files, and the bits that it is loaded in."""
        files = base_digest(self.base)
        return files if self._bits is None else hashlib.sha256(f"{files} {self._bits.to_dict()}".encode()).hexdigest()

    @property
    def settings(self) -> dict[str, str | int]:
        """See `Engine`."""
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()
        return {
            "engine": "transformers",
            "decoding": "greedy",
            "version": 2,
            "dtype": self._dtype,
            "batch_size": self.prompts.batch_size,
            "batch_tokens": self.prompts.batch_tokens,
            "template": template,
        }

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.prompts.tokenizer

    @property
    def context(self) -> int | None:
        """See `Engine`."""
        return self.prompts.context

    @property
    def _loaded(self) -> PreTrainedModel:
        return self._weights.model

    def prompt(self, messages: tuple[Message, ...], tools: str = "") -> list[int]:
        """Token ids of the messages with the assistant's turn opened; of a plain text, as the tokenizer writes it."""
        return self.prompts.of(messages, tools)

    def tokens(self, request: Request) -> int:
        """See `Engine`."""
        return self.prompts.tokens(request)

    def answer_tokens(self, answer: str) -> int:
        """See `Engine`."""
        return self.prompts.answer_tokens(answer)

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `Engine`."""
        return self.prompts.batches(requests)

    def answers(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Response]]]:
        """See `Engine`; in the order of the batches."""
        for place, batch in enumerate(batches):
            yield place, self.answer(batch)

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The answers, in the order of the requests."""
        found: dict[int, Response] = {}
        for batch in self.batches(requests):
            found |= zip(batch, self._answered([requests[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(requests))]

    def log_probabilities(self, tokens: Sequence[int]) -> Tensor:
        """Of every next token of one text: (len(tokens) - 1, vocabulary), natural logarithms, fp32, on the device.

        Raises EvaluationError for logits that are not finite.
        """
        return log_probabilities(self._weights, tokens)

    def generate(self, requests: Sequence[Generate]) -> list[str]:
        """The first text of each answer."""
        return [response.text for response in self.answer(requests)]

    def _answered(self, batch: Sequence[Request]) -> list[Response]:
        """Of one batch, all of one kind."""
        texts = [request for request in batch if isinstance(request, Generate)]
        others = [request for request in batch if not isinstance(request, Generate)]
        try:
            if texts:
                return generate(self._weights, self.prompts, texts)
            return judge(self._weights, self.prompts, others)
        except torch.OutOfMemoryError:
            raise EngineError(
                f"the memory of {self.device} is too small for {self.prompts.batch_size} rows at once (item "
                f"{batch[0].id!r} and what shares its batch); lower evaluation.batch_size and evaluation.batch_tokens"
            ) from None


def base_digest(directory: Path) -> str:
    """Hex sha256 over names and contents of a base's config, weights and tokenizer files."""
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()})
    entries = [f"{path.name} {sha256_of(path)}\n" for path in files]
    return hashlib.sha256("".join(entries).encode()).hexdigest()
