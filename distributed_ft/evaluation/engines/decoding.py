"""Texts, a batch at a time: what all prompts begin with is read once, and rows that are done leave the batch."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.engines.prompts import Prompts
from distributed_ft.evaluation.engines.weights import Weights
from distributed_ft.evaluation.task import Generate, Response

_ROUND = 16  # tokens
_NO_TEXT = 8  # tokens of an answer's tail that may stand for no byte of it (special ones, half a character)


@dataclass
class _Row:
    """One text that is being written. `noise`: where its next token is drawn from; None: greedy."""

    request: Generate
    prompt: list[int]
    limit: int  # tokens
    noise: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, token: int, stop: frozenset[int], tokenizer: PreTrainedTokenizerFast) -> None:
        """The next token; a stop token is left out."""
        if token in stop:
            self.done = True
            return
        self.tokens.append(token)
        self.done = len(self.tokens) >= self.limit or self._said_stop(tokenizer)

    def _said_stop(self, tokenizer: PreTrainedTokenizerFast) -> bool:
        """Whether the text has a stop string by now. A token is at least a byte, so that the tail tells it."""
        if not self.request.stop:
            return False
        longest = max(len(text.encode()) for text in self.request.stop) + _NO_TEXT
        tail = text_of(tokenizer, self.tokens[-longest:])
        return any(text in tail for text in self.request.stop) and self.text(tokenizer) != self._whole(tokenizer)

    def _whole(self, tokenizer: PreTrainedTokenizerFast) -> str:
        return text_of(tokenizer, self.tokens)

    def text(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """Up to the first of the stop strings."""
        text = self._whole(tokenizer)
        ends = [place for place in (text.find(stop) for stop in self.request.stop) if place >= 0]
        return text[: min(ends)] if ends else text


@torch.inference_mode()
def generate(weights: Weights, prompts: Prompts, requests: Sequence[Generate]) -> list[Response]:
    """The answers of one batch, in the order of the requests."""
    rows = [
        _Row(request, prompts.of(request.messages, request.tools), prompts.limit(request), _generator(request, draw))
        for request in requests
        for draw in range(request.draws)
    ]
    _decode(weights, prompts, rows)
    texts = iter([row.text(prompts.tokenizer) for row in rows])
    return [Response(texts=tuple(next(texts) for _ in range(request.draws))) for request in requests]


def _decode(weights: Weights, prompts: Prompts, rows: Sequence[_Row]) -> None:
    """The most likely next token (or one drawn, where there is noise), again and again, until every row is done."""
    device = weights.device
    shared = shared_prefix(prompts, [row.prompt for row in rows])
    cache = weights.read(shared, len(rows))
    read = weights.num_virtual + len(shared)
    rest = [row.prompt[len(shared) :] for row in rows]
    width = max(map(len, rest))
    padded = min(map(len, rest)) < width  # without padding, the kernels do without a mask
    tokens = torch.tensor([[0] * (width - len(r)) + r for r in rest], device=device)
    mask = torch.ones(len(rows), read + width + max(row.limit for row in rows), dtype=torch.long, device=device)
    for i, r in enumerate(rest):
        mask[i, read : read + width - len(r)] = 0
    seen = read + width
    positions = (mask[:, :seen].cumsum(-1) - 1).clamp(min=0)[:, read:]
    while True:
        logits = weights.forward(tokens, mask[:, :seen] if padded else None, positions, cache, 1)[:, -1].float()
        tokens = _drawn(logits, rows).argmax(-1, keepdim=True)
        # one transfer a step; doubles hold every token id
        chosen = torch.cat([tokens.double(), logits.gather(-1, tokens).double()], dim=-1).tolist()
        for row, (token, logit) in zip(rows, chosen, strict=True):
            if row.done:
                continue
            if not math.isfinite(logit):  # NaN and +inf are an argmax of their row
                raise EvaluationError(
                    f"item {row.request.id!r}: logits are not finite at token {len(row.tokens) + 1} of the answer"
                )
            row.take(int(token), prompts.stop, prompts.tokenizer)
        left = [i for i, row in enumerate(rows) if not row.done]
        if not left:
            return
        # rows that are done are fed on, and learned positions end at the context
        positions = (positions[:, -1:] + 1).clamp(max=None if prompts.context is None else prompts.context - 1)
        seen += 1
        if 2 * len(left) <= len(rows) and prompts.sees_all:  # a batch is copied at most log2 of its rows times
            places = torch.tensor(left, device=device)
            cache.batch_select_indices(places)
            rows = [rows[i] for i in left]
            tokens, mask, positions = tokens[places], mask[places], positions[places]


def shared_prefix(prompts: Prompts, rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all rows begin with (examples, instructions), to be read once; () where that would save nothing.

    Cut to a round number, so that the batches of a task, which may have a few more tokens in common, have the same.
    Padding stands between prefix and rest, so caches that forget by distance (sliding windows) are left alone.
    """
    if len(rows) == 1 or not prompts.sees_all:
        return ()
    columns = list(zip(*rows, strict=False))[:-1]  # every row keeps a token to start from
    shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return tuple(rows[0][: shared - shared % _ROUND])


def text_of(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """Special tokens left out, spaces as they are."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _generator(request: Generate, draw: int) -> torch.Generator | None:
    """The noise of one draw, whatever shares its batch; None: greedy."""
    if not request.temperature:
        return None
    seed = hashlib.sha256(f"{request.seed} {draw} {request.id}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed))


def _drawn(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """Scores whose argmax is a draw from the softmax of logits / temperature (Gumbel 1954); greedy rows as they are."""
    if not any(row.noise for row in rows):
        return logits
    scores = []
    for of_row, row in zip(logits, rows, strict=True):
        if row.noise is None:
            scores.append(of_row)
        else:
            exponential = torch.empty(of_row.shape, dtype=torch.float64).exponential_(generator=row.noise)
            scores.append((of_row.double() / row.request.temperature - exponential.log().to(of_row.device)).float())
    return torch.stack(scores)
