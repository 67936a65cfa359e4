"""What turns requests into answers: the base model in this process, with one checkpoint's weights at a time.

Decoding is batched. Batches are cut from the requests sorted by prompt length, so which requests share a
batch depends on the requests alone. The same code runs on a CPU and on CUDA.
"""

import hashlib
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer

from distributed_ft.artifacts import sha256_of
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.chat import render, render_prompt
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import CheckpointError, EvaluationError, brief, some
from distributed_ft.evaluation.likelihood import Continuation, continuation, windows
from distributed_ft.evaluation.task import Choose, Generate, Read, Request, Response
from distributed_ft.model.adapters import num_virtual_tokens, put_on, take_off
from distributed_ft.model.load import DTYPES, MODEL_FILES, base_directory, load_tokenizer
from distributed_ft.model.methods import bottleneck
from distributed_ft.model.quantized import keep_layout, quantization


class Engine(Protocol):
    """A base model that can put on one checkpoint after another."""

    def use(self, weights: Path | None) -> None:
        """Answer as the checkpoint whose `model/` directory this is, or as the base for None."""
        ...

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Which requests are answered together, by their places: each batch may be given to `answer` alone, with the
        same answers.

        Raises EvaluationError for a prompt that leaves no room for an answer.
        """
        ...

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """The answers, in the order of the requests; texts up to the end of the turn, special tokens left out.

        Raises EvaluationError as `batches` does, and for logits that are not finite.
        """
        ...


class TransformersEngine:
    """The base is loaded once, when first needed; adapters are put on and taken off, full weights replace it."""

    def __init__(
        self, base: str, dtype: Literal["bf16", "fp32"], batch_size: int, bits: BitsAndBytesConfig | None = None
    ) -> None:
        """`bits`: a base that was quantised for training answers as it was trained."""
        self._bits = bits
        self.base = base_directory(base)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(str(self.base))
        text_config = AutoConfig.from_pretrained(self.base).get_text_config()
        # most tokens that prompt and answer may have together; None where the architecture sets no bound
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        self._dtype, self._batch_size = dtype, batch_size
        self._model: PreTrainedModel | None = None
        self._adapter: PeftModelForCausalLM | None = None
        self._bottlenecks: list[RemovableHandle] = []
        self._num_virtual = 0  # tokens that the adapter puts before every prompt
        self._is_base = False  # the weights under the adapter are the base's
        self._shapes: dict[str, torch.Size] = {}  # of the base's tensors
        self._stop = torch.empty(0, dtype=torch.long)
        self._prompts: dict[tuple[tuple[Message, ...], str], list[int]] = {}  # every model is asked the same

    # --- which weights ---------------------------------------------------------------------------------------------

    def use(self, weights: Path | None) -> None:
        """See `Engine`. Raises CheckpointError when the weights do not fit the base, whatever the difference."""
        self._take_off()
        if weights is not None and not is_adapter(weights):
            self._load_full(weights)
            return
        if not self._is_base:
            self._model = None  # before the load: there is never memory for two
            self._model = self._load(self.base)
            self._shapes = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
            self._stop = torch.tensor(sorted(self._stop_tokens(self._model)), device=self.device)
            self._is_base = True
        if weights is not None:
            self._attach(weights)

    def _take_off(self) -> None:
        """Take the adapter off that is on, if one is."""
        if self._adapter is not None:
            take_off(self._adapter)
        if self._bottlenecks:
            bottleneck.detach(self._loaded, self._bottlenecks)
        self._adapter, self._bottlenecks, self._num_virtual = None, [], 0

    def _load(self, directory: Path) -> PreTrainedModel:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=DTYPES[self._dtype],
                output_loading_info=True,
                quantization_config=self._bits,
                device_map=None if self._bits is None else {"": self.device},
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{directory}: the model cannot be loaded: {brief(error)}") from None
        model, info = loaded
        if self._bits is not None:
            keep_layout(model)
        # keys of the file that the model does not have are harmless in a base; a key without a value never is
        strict = ("missing_keys", "mismatched_keys") + (() if directory == self.base else ("unexpected_keys",))
        wrong = [f"{kind.replace('_', ' ')}: {some(info[kind])}" for kind in strict if info.get(kind)]
        if wrong:
            raise CheckpointError(f"{directory}: the weights do not fit the architecture; {'; '.join(wrong)}")
        return cast(PreTrainedModel, (model if self._bits else model.to(self.device)).eval())

    def _load_full(self, weights: Path) -> None:
        if not (weights / "config.json").is_file():
            raise CheckpointError(f"{weights}: neither adapter_config.json nor config.json: no model is here")
        if not self._shapes:
            self.use(None)
        self._model, self._is_base = None, False
        model = self._load(weights)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if shapes != self._shapes:
            differing = [n for n in {**shapes, **self._shapes} if shapes.get(n) != self._shapes.get(n)]
            raise CheckpointError(f"{weights}: not a fine-tune of {self.base}: {some(differing)} differ in shape")
        self._model = model

    def _attach(self, weights: Path) -> None:
        if (weights / bottleneck.DESCRIPTION).is_file():
            self._bottlenecks = bottleneck.load(self._loaded, weights)
            return
        self._is_base = False  # until it is known that taking the adapter off restores the base
        self._adapter = put_on(self._loaded, "default", weights, str(self.base))
        self._num_virtual = num_virtual_tokens(self._adapter)
        # PEFT leaves the trained copies of such modules in the base when it takes an adapter off
        self._is_base = not getattr(self._adapter.active_peft_config, "modules_to_save", None)

    @property
    def digest(self) -> str:
        """Identity of the base as it answers: its files, and the bits that it is loaded in."""
        files = base_digest(self.base)
        return files if self._bits is None else hashlib.sha256(f"{files} {self._bits.to_dict()}".encode()).hexdigest()

    @property
    def _loaded(self) -> PreTrainedModel:
        assert self._model is not None, "use() comes first"
        return self._model

    # --- answers ---------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, str | int]:
        """What, besides model and request, an answer depends on."""
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()
        return {
            "engine": "transformers",
            "decoding": "greedy",
            "version": 1,
            "dtype": self._dtype,
            "batch_size": self._batch_size,
            "template": template,
        }

    def prompt(self, messages: tuple[Message, ...], tools: str = "") -> list[int]:
        """Token ids of the messages with the assistant's turn opened; of a plain text, as the tokenizer writes it."""
        key = (messages, tools)
        if key not in self._prompts:
            plain = messages[0].role == TEXT
            text = self.tokenizer.encode(messages[0].content) if plain else None
            self._prompts[key] = render_prompt(self.tokenizer, messages, tools) if text is None else text
        return self._prompts[key]

    def answer_tokens(self, answer: str) -> int:
        """How many tokens a model has to write for this answer, the end of the turn aside."""
        return len(self.tokenizer.encode(answer, add_special_tokens=False))

    def tokens(self, request: Request) -> int:
        """Of its prompt and the longest answer to it."""
        if isinstance(request, Read):
            return self._length(request)
        behind = request.max_new_tokens if isinstance(request, Generate) else self._longest(request)
        return len(self.prompt(request.messages, request.tools)) + behind

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `Engine`."""
        lengths = [self._length(request) for request in requests]
        # of one kind, the shortest first; a request of several rows counts as so many
        order = sorted(range(len(requests)), key=lambda i: (type(requests[i]).__name__, lengths[i], i))
        # virtual tokens would be pushed out of a sliding window by the padding behind them
        size = 1 if self._num_virtual and not self._sees_all else self._batch_size
        found: list[list[int]] = []
        full = 0
        for i in order:
            rows = _rows(requests[i])
            if not found or full + rows > size or type(requests[i]) is not type(requests[found[-1][0]]):
                found.append([])
                full = 0
            found[-1].append(i)
            full += rows
        return found

    def _length(self, request: Request) -> int:
        """Tokens to read before anything is answered. Raises EvaluationError when there is no room for an answer."""
        if isinstance(request, Read):
            return len(self.tokenizer.encode(request.text, add_special_tokens=False))
        prompt = len(self.prompt(request.messages, request.tools))
        behind = self._longest(request) if isinstance(request, Choose) else 1
        if self._room is not None and prompt + behind > self._room:
            raise EvaluationError(
                f"item {request.id!r}: its prompt has {prompt} tokens, the model takes {self._room} with "
                "the answer; shorten it, or lower evaluation.few_shot"
            )
        return prompt

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """See `Engine`."""
        found: dict[int, Response] = {}
        for batch in self.batches(requests):
            asked = [requests[i] for i in batch]
            generations = [request for request in asked if isinstance(request, Generate)]
            answers = self._texts(generations) if generations else self._likelihoods(asked)
            found |= zip(batch, answers, strict=True)
        return [found[i] for i in range(len(requests))]

    def generate(self, requests: Sequence[Generate]) -> list[str]:
        """The first text of each answer."""
        return [response.text for response in self.answer(requests)]

    # --- text ------------------------------------------------------------------------------------------------------

    def _texts(self, requests: Sequence[Generate]) -> list[Response]:
        """Of one batch."""
        rows = [(request, draw) for request in requests for draw in range(request.draws)]
        prompts = [self.prompt(request.messages, request.tools) for request, _ in rows]
        limits = [self._limit(request, len(p)) for (request, _), p in zip(rows, prompts, strict=True)]
        noise = [_generator(request, draw) for request, draw in rows]
        temperatures = [request.temperature for request, _ in rows]
        decoded = [
            self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for tokens in self._decoded(prompts, limits, [request.id for request, _ in rows], temperatures, noise)
        ]
        texts = iter(_before(cast(str, t), request.stop) for t, (request, _) in zip(decoded, rows, strict=True))
        return [Response(texts=tuple(next(texts) for _ in range(request.draws))) for request in requests]

    @torch.inference_mode()
    def log_probabilities(self, tokens: Sequence[int]) -> Tensor:
        """Of every next token of one text: (len(tokens) - 1, vocabulary), natural logarithms, fp32, on the device.

        Raises EvaluationError for logits that are not finite.
        """
        model, ids = self._loaded, torch.tensor([list(tokens)], device=self.device)
        inputs: dict[str, Any] = {"past_key_values": self._virtual_tokens(), "use_cache": True}
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=self.device)[None] + self._num_virtual
        logits = cast(Tensor, model(input_ids=ids, **inputs).logits)[0, :-1].float()
        if not logits.isfinite().all():
            bad = int((~logits.isfinite().all(-1)).nonzero()[0])
            raise EvaluationError(f"logits are not finite at token {bad + 1} of a text of {len(tokens)} tokens")
        return logits.log_softmax(-1)

    @property
    def _room(self) -> int | None:
        """Most tokens of a prompt and its answer."""
        return None if self.context is None else self.context - self._num_virtual

    @property
    def _sees_all(self) -> bool:
        """Whether every layer remembers all tokens (no sliding windows, no states)."""
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self._loaded.config).layers)

    def _limit(self, request: Generate, prompt_tokens: int) -> int:
        room = request.max_new_tokens if self._room is None else self._room - prompt_tokens
        return min(request.max_new_tokens, room)

    @torch.inference_mode()
    def _decoded(
        self,
        prompts: list[list[int]],
        limits: list[int],
        ids: list[str],
        temperatures: list[float],
        noise: Sequence[torch.Generator | None],
    ) -> list[list[int]]:
        """The most likely next token (or one drawn, where there is noise), again and again, up to a stop token (left
        out) or the row's limit."""
        model, device = self._loaded, self.device
        cache = self._virtual_tokens()
        shared = self._read_shared_prefix(cache, prompts)
        read = self._num_virtual + shared
        if read:
            cache.batch_repeat_interleave(len(prompts))
        room = max(map(len, prompts)) - shared
        rest = [prompt[shared:] for prompt in prompts]
        tokens = torch.tensor([[0] * (room - len(r)) + r for r in rest], device=device)
        mask = torch.tensor([[1] * read + [0] * (room - len(r)) + [1] * len(r) for r in rest], device=device)
        padded = len({len(r) for r in rest}) > 1  # without padding, the kernels do without a mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, read:]
        budget = torch.tensor(limits, device=device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        accepted = inspect.signature(model.forward).parameters
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = 1
        columns: list[Tensor] = []
        while not done.all():
            if "position_ids" in accepted:
                inputs["position_ids"] = positions
            logits = model(input_ids=tokens, attention_mask=mask if padded else None, **inputs).logits[:, -1].float()
            tokens = _drawn(logits, temperatures, noise).argmax(-1, keepdim=True)
            finite = logits.gather(-1, tokens).isfinite().squeeze(-1)  # NaN and +inf are an argmax of their row
            if not (finite | done).all():
                bad = int((~finite & ~done).nonzero()[0])
                raise EvaluationError(
                    f"item {ids[bad]!r}: logits are not finite at token {len(columns) + 1} of the answer"
                )
            columns.append(tokens.squeeze(-1))
            done |= torch.isin(columns[-1], self._stop) | (len(columns) >= budget)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=-1)
            # rows that are done are fed on, and learned positions end at the context
            positions = (positions[:, -1:] + 1).clamp(max=None if self.context is None else self.context - 1)
        rows = torch.stack(columns, dim=-1).tolist()
        stop = set(self._stop.tolist())
        return [_until(row[:limit], stop) for row, limit in zip(rows, limits, strict=True)]

    # --- likelihood ------------------------------------------------------------------------------------------------

    def _continuations(self, request: Choose | Read) -> list[Continuation]:
        if isinstance(request, Read):
            start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else min(self._stop.tolist())
            ids = self.tokenizer.encode(request.text, add_special_tokens=False)
            return windows(ids, start, self._room or max(1, len(ids)))
        prompt = self.prompt(request.messages, request.tools)
        text = request.messages[0].content if request.messages[0].role == TEXT else None
        try:
            return [continuation(self.tokenizer, prompt, text, choice) for choice in request.choices]
        except ValueError as error:
            raise EvaluationError(f"item {request.id!r}: {error}") from None

    def _longest(self, request: Choose) -> int:
        return max(len(pair.answer) for pair in self._continuations(request))

    def _likelihoods(self, requests: Sequence[Request]) -> list[Response]:
        """Of one batch."""
        answers = []
        for request in requests:
            assert not isinstance(request, Generate)
            pairs = self._continuations(request)
            starts = range(0, len(pairs), self._batch_size)
            found = [answer for i in starts for answer in self._read(pairs[i : i + self._batch_size])]
            if not all(math.isfinite(nats) for nats, _ in found):
                raise EvaluationError(f"item {request.id!r}: logits are not finite")
            nats, tokens = tuple(n for n, _ in found), tuple(len(pair.answer) for pair in pairs)
            greedy = tuple(greedy for _, greedy in found)
            if isinstance(request, Read):
                nats, tokens, greedy = (math.fsum(nats),), (sum(tokens),), (all(greedy),)
            answers.append(Response(nats=nats, tokens=tokens, greedy=greedy))
        return answers

    @torch.inference_mode()
    def _read(self, pairs: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each answer behind its prompt, and whether each of its tokens is the likeliest."""
        cache = self._virtual_tokens()
        if self._num_virtual:
            cache.batch_repeat_interleave(len(pairs))
        rows = [pair.prompt + pair.answer[:-1] for pair in pairs]  # nothing follows the last token
        room = max(map(len, rows))
        tokens = torch.tensor([[0] * (room - len(r)) + r for r in rows], device=self.device)
        shown = [[1] * self._num_virtual + [0] * (room - len(r)) + [1] * len(r) for r in rows]
        mask = torch.tensor(shown, device=self.device)
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True} if self._num_virtual else {}
        accepted = inspect.signature(self._loaded.forward).parameters
        if "position_ids" in accepted:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self._num_virtual :]
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = max(len(pair.answer) for pair in pairs)
        logits = self._loaded(input_ids=tokens, attention_mask=mask, **inputs).logits
        found = []
        for row, pair in zip(logits, pairs, strict=True):
            of_answer = row[-len(pair.answer) :].float().log_softmax(-1)
            target = torch.tensor(pair.answer, device=self.device)
            nats = of_answer.gather(-1, target[:, None]).sum(dtype=torch.float64)
            found.append((float(nats), bool((of_answer.argmax(-1) == target).all())))
        return found

    def _virtual_tokens(self) -> DynamicCache:
        """A cache of one row, with the adapter's virtual tokens in it if it has any."""
        virtual = self._adapter.get_prompt(batch_size=1) if self._adapter is not None and self._num_virtual else None
        if isinstance(virtual, DynamicCache):  # prefix tuning: keys and values as they are
            return virtual
        cache = DynamicCache(config=self._loaded.config)
        if virtual is not None:  # prompt tuning: embeddings, to be read
            embedded = virtual.to(self._loaded.get_input_embeddings().weight.dtype)
            self._loaded.base_model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        return cache

    def _read_shared_prefix(self, cache: DynamicCache, prompts: list[list[int]]) -> int:
        """Fill the cache with what all prompts begin with (examples, instructions), read once; how many tokens it is.

        Padding then stands between prefix and rest, so caches that forget by distance (sliding windows) are left alone.
        """
        columns = list(zip(*prompts, strict=False))[:-1]  # every row keeps a token to start from
        shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
        if len(prompts) == 1 or shared < 1 or not self._sees_all:
            return 0
        prefix = torch.tensor([prompts[0][:shared]], device=self.device)
        self._loaded.base_model(input_ids=prefix, past_key_values=cache, use_cache=True)  # no head: no logits wanted
        return shared

    def _stop_tokens(self, model: PreTrainedModel) -> set[int]:
        """End of text, as tokenizer and generation config name it, and the end of an assistant turn in the template."""
        named = model.generation_config.eos_token_id if model.generation_config is not None else None
        stop = set(named) if isinstance(named, list) else {named}
        stop.add(self.tokenizer.eos_token_id)
        turn = render(self.tokenizer, [Message("user", "?"), Message("assistant", "!")])
        if turn.ends:
            stop.add(max(zip(turn.supervised, range(len(turn.ids)), turn.ids, strict=True))[2])  # the last learned
        return {token for token in stop if token is not None}


def engine_of(config: RunConfig, batch_size: int) -> TransformersEngine:
    """The engine of a run: its base, quantised where training quantised it."""
    dtype = config.model.dtype
    return TransformersEngine(config.model.base, dtype, batch_size, quantization(config.method, DTYPES[dtype]))


def is_adapter(weights: Path) -> bool:
    """Whether a checkpoint's `model/` holds an adapter, of PEFT or of ours, and no whole model."""
    return any((weights / name).is_file() for name in ("adapter_config.json", bottleneck.DESCRIPTION))


def base_digest(directory: Path) -> str:
    """Hex sha256 over names and contents of a base's config, weights and tokenizer files."""
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()})
    entries = [f"{path.name} {sha256_of(path)}\n" for path in files]
    return hashlib.sha256("".join(entries).encode()).hexdigest()


def _rows(request: Request) -> int:
    """How many rows of a batch it takes."""
    return (
        request.draws if isinstance(request, Generate) else len(request.choices) if isinstance(request, Choose) else 1
    )


def _generator(request: Generate, draw: int) -> torch.Generator | None:
    """The noise of one draw, whatever shares its batch; None: greedy."""
    if not request.temperature:
        return None
    seed = hashlib.sha256(f"{request.seed} {draw} {request.id}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed))


def _drawn(logits: Tensor, temperatures: list[float], noise: Sequence[torch.Generator | None]) -> Tensor:
    """Scores whose argmax is a draw from the softmax of logits / temperature (Gumbel 1954); greedy rows as they are."""
    if not any(noise):
        return logits
    rows = []
    for row, temperature, generator in zip(logits, temperatures, noise, strict=True):
        if generator is None:
            rows.append(row)
        else:
            exponential = torch.empty(row.shape, dtype=torch.float64).exponential_(generator=generator)
            rows.append((row.double() / temperature - exponential.log().to(row.device)).float())
    return torch.stack(rows)


def _before(text: str, stop: Sequence[str]) -> str:
    """Up to the first of the stop strings."""
    ends = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]
