"""What a base reads for a request, and which requests share a batch: by its tokenizer and config, without its weights.

Every process that answers, and the one that only hands out work, decide the same.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from distributed_ft.data.chat import render, render_prompt
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.likelihood import Continuation, continuation, continuations_of_texts, windows
from distributed_ft.evaluation.task import Choose, Generate, Read, Request
from distributed_ft.model.load import load_tokenizer


class Prompts:
    """Of one base. `num_virtual`: tokens that the adapter in use puts before every prompt."""

    def __init__(self, base: Path, batch_size: int, batch_tokens: int) -> None:
        """`batch_size` rows are computed together, more while they have at most `batch_tokens` tokens, padding and
        answers among them. Raises ConfigError when the tokenizer cannot be read."""
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(str(base))
        self._config: PreTrainedConfig = AutoConfig.from_pretrained(base)
        # most tokens that prompt and answer may have together; None where the architecture sets no bound
        self.context: int | None = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        # whether every layer remembers all tokens (no sliding windows, no states)
        self.sees_all = all(type(layer) is DynamicLayer for layer in DynamicCache(config=self._config).layers)
        self.stop = frozenset(_stop_tokens(self.tokenizer, _generation_config(base, self._config)))
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.num_virtual = 0
        self._prompts: dict[tuple[tuple[Message, ...], str], list[int]] = {}  # every model is asked the same
        self._pairs: dict[Choose, list[Continuation]] = {}

    def of(self, messages: tuple[Message, ...], tools: str = "") -> list[int]:
        """Token ids of the messages with the assistant's turn opened; of a plain text, as the tokenizer writes it."""
        key = (messages, tools)
        if key not in self._prompts:
            plain = messages[0].role == TEXT
            text = self.tokenizer.encode(messages[0].content) if plain else None
            self._prompts[key] = render_prompt(self.tokenizer, messages, tools) if text is None else text
        return self._prompts[key]

    def continuations(self, request: Choose | Read) -> list[Continuation]:
        """What log-likelihoods are asked of: a pair a choice, or a window of the text."""
        if isinstance(request, Read):
            ids = self.tokenizer.encode(request.text, add_special_tokens=False)
            return windows(ids, self._start, self.room or max(1, len(ids)))
        if request not in self._pairs:
            try:
                self._pairs[request] = self._choices(request)
            except ValueError as error:
                raise EvaluationError(f"item {request.id!r}: {error}") from None
        return self._pairs[request]

    def _choices(self, request: Choose) -> list[Continuation]:
        contexts = request.contexts
        if contexts is None and request.messages[0].role == TEXT:
            contexts = (request.messages[0].content,) * len(request.choices)
        if contexts is None:
            prompt = self.of(request.messages, request.tools)
            return [continuation(self.tokenizer, prompt, choice) for choice in request.choices]
        return continuations_of_texts(self._encoded, contexts, request.choices, self._start)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """As `tokenizer.encode` has them, without the characters of tokens, which are most of the work."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=True)]

    @property
    def _start(self) -> int:
        """The token that stands before a text that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    @property
    def room(self) -> int | None:
        """Most tokens of a prompt and its answer."""
        return None if self.context is None else self.context - self.num_virtual

    def limit(self, request: Generate) -> int:
        """Most tokens of its answer: those asked for, or what the context has room for."""
        left = (
            request.max_new_tokens if self.room is None else self.room - len(self.of(request.messages, request.tools))
        )
        return min(request.max_new_tokens, left)

    def tokens(self, request: Request) -> int:
        """Of its prompt and the longest answer to it."""
        if isinstance(request, Read):
            return self._length(request)
        if isinstance(request, Choose):
            return max(len(pair.prompt) + len(pair.answer) for pair in self.continuations(request))
        return len(self.of(request.messages, request.tools)) + request.max_new_tokens

    def answer_tokens(self, answer: str) -> int:
        """How many tokens a model has to write for this answer, the end of the turn aside."""
        return len(self.tokenizer.encode(answer, add_special_tokens=False))

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `Engine`."""
        lengths = [self._length(request) for request in requests]
        # of one kind, the longest first: what does not fit in memory shows at once, and no long one is left for the
        # end, when others have nothing to do. A request of several rows counts as so many
        order = sorted(range(len(requests)), key=lambda i: (type(requests[i]).__name__, -lengths[i], i))
        found: list[list[int]] = []
        rows = longest = 0  # of the batch that is being filled
        for i in order:
            new, tokens = _rows(requests[i]), self._row_tokens(requests[i], lengths[i])
            other = not found or type(requests[i]) is not type(requests[found[-1][0]])
            if other or self.is_full(rows + new, max(longest, tokens)):
                found.append([])
                rows = longest = 0
            found[-1].append(i)
            rows, longest = rows + new, max(longest, tokens)
        return found

    def is_full(self, rows: int, longest: int) -> bool:
        """Whether so many rows of so many tokens are too many for a batch."""
        # virtual tokens would be pushed out of a sliding window by the padding behind them
        if self.num_virtual and not self.sees_all:
            return rows > 1
        return rows > self.batch_size and rows * longest > self.batch_tokens

    def _row_tokens(self, request: Request, length: int) -> int:
        return length + self.limit(request) if isinstance(request, Generate) else length

    def _length(self, request: Request) -> int:
        """Tokens to read before anything is answered. Raises EvaluationError when there is no room for an answer."""
        if isinstance(request, Read):
            return len(self.tokenizer.encode(request.text, add_special_tokens=False))
        if isinstance(request, Choose):
            longest = max(self.continuations(request), key=lambda pair: len(pair.prompt) + len(pair.answer))
            prompt, behind = len(longest.prompt), len(longest.answer)
        else:
            prompt, behind = len(self.of(request.messages, request.tools)), 1
        if self.room is not None and prompt + behind > self.room:
            raise EvaluationError(
                f"item {request.id!r}: its prompt has {prompt} tokens, the model takes {self.room} with "
                "the answer; shorten it, or lower evaluation.few_shot"
            )
        return prompt


def _rows(request: Request) -> int:
    """How many rows of a batch it takes."""
    return request.draws if isinstance(request, Generate) else 1


def _generation_config(base: Path, config: PreTrainedConfig) -> GenerationConfig:
    """As a model has it that is loaded from there."""
    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:  # no such file
        return GenerationConfig.from_model_config(config)


def _stop_tokens(tokenizer: PreTrainedTokenizerFast, generation: GenerationConfig) -> set[int]:
    """End of text, as tokenizer and generation config name it, and the end of an assistant turn in the template."""
    named = generation.eos_token_id
    stop = set(named) if isinstance(named, list) else {named}
    stop.add(tokenizer.eos_token_id)
    turn = render(tokenizer, [Message("user", "?"), Message("assistant", "!")])
    if turn.ends:
        stop.add(max(zip(turn.supervised, range(len(turn.ids)), turn.ids, strict=True))[2])  # the last learned
    return {token for token in stop if token is not None}
