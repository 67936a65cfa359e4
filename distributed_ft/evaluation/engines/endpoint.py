"""The engine behind an OpenAI-compatible server, which holds base and adapters as models of different names.

Conversations go to chat/completions, where the server's template writes the prompt. Log-likelihoods need completions
with `echo` and `logprobs`, which not every server offers; they are asked of token ids, so that prompt and choice are
cut apart as the engine in this process cuts them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from distributed_ft.config.schema import EndpointEngineConfig, RunConfig
from distributed_ft.data.examples import TEXT
from distributed_ft.errors import CheckpointError, EngineError, EvaluationError, FtError
from distributed_ft.evaluation import http
from distributed_ft.evaluation.engines.prompts import Prompts
from distributed_ft.evaluation.likelihood import Continuation
from distributed_ft.evaluation.task import Choose, Generate, Read, Request, Response
from distributed_ft.model.load import base_directory

_MOST_STOPS = 4  # of the API; the others are cut off here


class EndpointEngine:
    """Each request is a batch of its own; `concurrency` of them are under way at a time."""

    def __init__(self, config: RunConfig, settings: EndpointEngineConfig) -> None:
        """Raises ConfigError when the environment lacks the key."""
        http.bearer(settings.api_key_env)
        self._config, self._server = config, settings
        self._model = settings.model
        self._prompts: Prompts | None = None  # the base's tokenizer: where token ids are needed
        self.context: int | None = None  # is the server's affair

    @property
    def digest(self) -> str:
        """Of its address and name: what a server holds, it does not tell."""
        return hashlib.sha256(f"{self._server.url} {self._server.model}".encode()).hexdigest()

    @property
    def settings(self) -> dict[str, str | int]:
        """See `Engine`."""
        server = self._server
        named = {"url": server.url, "model": server.model, "checkpoint_model": server.checkpoint_model}
        return {"engine": "endpoint", "version": 1, **named}

    def tokens(self, request: Request) -> int:
        """Unknown, and needed only where `context` is known."""
        return 0

    def answer_tokens(self, answer: str) -> int:
        """Unknown: nothing is said of answers that would be cut off."""
        return 0

    def use(self, weights: Path | None, strength: float = 1.0) -> None:
        """Ask the model that the server knows by the checkpoint's name. Raises CheckpointError for another strength."""
        if weights is None:
            self._model = self._server.model
            return
        name = weights.parent.name  # step-00000500
        if strength != 1:
            raise CheckpointError(f"{name}: a server's adapters have the strength that they have; leave out {strength}")
        step = int(name.removeprefix("step-"))
        self._model = self._server.checkpoint_model.format(run=self._config.name, name=name, step=step)

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """See `Engine`."""
        return [[place] for place in range(len(requests))]

    def answers(self, batches: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Response]]]:
        """See `Engine`. The first that fails ends it; what is under way is awaited, and kept."""
        waiting = iter(enumerate(batches))
        under_way: dict[Future[list[Response]], int] = {}
        failed: dict[int, FtError] = {}
        with ThreadPoolExecutor(self._server.concurrency) as pool:
            while True:
                while not failed and len(under_way) < self._server.concurrency:
                    which, batch = next(waiting, (None, None))
                    if which is None or batch is None:
                        break
                    under_way[pool.submit(self._answers, batch)] = which
                if not under_way:
                    break
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    which = under_way.pop(done)
                    error = done.exception()
                    if isinstance(error, FtError):
                        failed[which] = error
                    else:
                        yield which, done.result()
        if failed:
            raise failed[min(failed)]

    def _answers(self, batch: Sequence[Request]) -> list[Response]:
        return [self._text(r) if isinstance(r, Generate) else self._likelihood(r) for r in batch]

    def _post(self, method: str, request: Request, asked: dict[str, Any]) -> Any:
        url = f"{self._server.url.rstrip('/')}/{method}"
        body = {"model": self._model, **asked}
        try:
            return http.post(url, body, key_env=self._server.api_key_env, timeout=self._server.timeout)
        except EvaluationError as error:
            raise EvaluationError(f"item {request.id!r}: {error}") from None

    # --- texts -----------------------------------------------------------------------------------------------------

    def _text(self, request: Generate) -> Response:
        seed = int.from_bytes(hashlib.sha256(f"{request.seed} {request.id}".encode()).digest()[:3])
        drawn = {"seed": seed, "n": request.draws} if request.temperature else {}
        asked: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": request.temperature, **drawn}
        if request.stop:
            asked["stop"] = list(request.stop[:_MOST_STOPS])
        plain = request.messages[0].role == TEXT
        if plain:
            reply = self._post("completions", request, {**asked, "prompt": request.messages[0].content})
        else:
            said: dict[str, Any] = {"messages": [message.for_template() for message in request.messages]}
            if request.tools:
                said["tools"] = json.loads(request.tools)
            reply = self._post("chat/completions", request, {**asked, **said})
        try:
            texts = [c["text"] if plain else c["message"]["content"] for c in reply["choices"]]
        except (KeyError, TypeError, IndexError):
            raise _no_answer(self._server.url, reply) from None
        if not request.temperature:
            texts = texts[:1] * request.draws
        if len(texts) != request.draws or not all(text is None or isinstance(text, str) for text in texts):
            raise _no_answer(self._server.url, reply)
        return Response(texts=tuple(_before(text or "", request.stop) for text in texts))  # null: it said nothing

    # --- likelihoods -----------------------------------------------------------------------------------------------

    def _likelihood(self, request: Choose | Read) -> Response:
        if self._prompts is None:
            self._prompts = Prompts(base_directory(self._config.model.base), 1, 0)
        pairs = self._prompts.continuations(request)
        judged = [self._judged(request, pair) for pair in pairs]
        nats, tokens = tuple(n for n, _ in judged), tuple(len(pair.answer) for pair in pairs)
        greedy = tuple(likeliest for _, likeliest in judged)
        if isinstance(request, Read):
            return Response(nats=(math.fsum(nats),), tokens=(sum(tokens),), greedy=(all(greedy),))
        return Response(nats=nats, tokens=tokens, greedy=greedy)

    def _judged(self, request: Request, pair: Continuation) -> tuple[float, bool]:
        """Log-likelihood in nats, and whether each token is the likeliest."""
        ids = [*pair.prompt, *pair.answer]
        asked = {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        reply = self._post("completions", request, asked)
        place = slice(len(pair.prompt), len(ids))
        try:
            found = reply["choices"][0]["logprobs"]
            values, highest = found["token_logprobs"][place], [max(t.values()) for t in found["top_logprobs"][place]]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            values, highest = [], []
        if not len(values) == len(highest) == len(pair.answer) or not all(map(_is_number, [*values, *highest])):
            raise EngineError(
                f"{self._server.url}: gives no log-likelihoods of prompts (completions with echo and logprobs), which "
                f"item {request.id!r} needs; use evaluation.engine: {{type: transformers}}, or a metric of texts"
            )
        if not all(map(math.isfinite, values)):
            raise EvaluationError(f"item {request.id!r}: log-likelihoods are not finite")
        return math.fsum(values), all(value >= top for value, top in zip(values, highest, strict=True))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _before(text: str, stop: Sequence[str]) -> str:
    ends = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def _no_answer(url: str, reply: Any) -> EngineError:
    return EngineError(f"{url}: no answer in the reply: {json.dumps(reply, ensure_ascii=False)[:200]}")
