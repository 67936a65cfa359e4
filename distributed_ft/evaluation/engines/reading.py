"""Log-likelihoods, a batch at a time: a prompt is read once for all its choices.

The choices of an item stand side by side in one row, behind their prompt: a mask lets each see the prompt and itself,
and its positions go on from the prompt's. So a row costs the tokens that are in it, and no cache is copied. Where a
model takes no such mask, or forgets by distance (sliding windows), prompt and choice are a row of their own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.engines.decoding import shared_prefix
from distributed_ft.evaluation.engines.prompts import Prompts
from distributed_ft.evaluation.engines.weights import Weights
from distributed_ft.evaluation.likelihood import Continuation
from distributed_ft.evaluation.task import Choose, Read, Response

Judged = tuple[float, bool]  # log-likelihood in nats, and whether each token is the likeliest
_MOST = 2**27  # entries of a mask, or of logits: half a gigabyte


@dataclass(frozen=True)
class _Row:
    """A prompt and what is judged behind it; each answer begins with the prompt's last logits."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def tail(self) -> int:
        """Tokens behind the prompt: nothing follows an answer's last one."""
        return sum(len(answer) - 1 for answer in self.answers)


def judge(weights: Weights, prompts: Prompts, requests: Sequence[Choose | Read]) -> list[Response]:
    """The answers of one batch, in the order of the requests."""
    pairs = [prompts.continuations(request) for request in requests]
    packs = prompts.sees_all and weights.takes_any_mask
    rows = [row for of_request in pairs for row in _rows(of_request, packs)]
    judged = iter([found for chunk in _chunks(weights, prompts, rows) for found in _judged(weights, prompts, chunk)])
    answers = []
    for request, of_request in zip(requests, pairs, strict=True):
        found = [next(judged) for _ in of_request]
        if not all(math.isfinite(nats) for nats, _ in found):
            raise EvaluationError(f"item {request.id!r}: logits are not finite")
        nats, tokens = tuple(n for n, _ in found), tuple(len(pair.answer) for pair in of_request)
        greedy = tuple(greedy for _, greedy in found)
        if isinstance(request, Read):
            nats, tokens, greedy = (math.fsum(nats),), (sum(tokens),), (all(greedy),)
        answers.append(Response(nats=nats, tokens=tokens, greedy=greedy))
    return answers


@torch.inference_mode()
def log_probabilities(weights: Weights, tokens: Sequence[int]) -> Tensor:
    """See `TransformersEngine.log_probabilities`."""
    ids = torch.tensor([list(tokens)], device=weights.device)
    positions = torch.arange(ids.shape[1], device=weights.device)[None] + weights.num_virtual
    logits = weights.forward(ids, None, positions, weights.read((), 1), len(tokens))[0, :-1].float()
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(-1)).nonzero()[0])
        raise EvaluationError(f"logits are not finite at token {bad + 1} of a text of {len(tokens)} tokens")
    return logits.log_softmax(-1)


def _rows(pairs: Sequence[Continuation], packs: bool) -> Iterator[_Row]:
    """In the order of the pairs; neighbours with the same prompt share a row where it may be."""
    row: _Row | None = None
    for pair in pairs:
        if row is not None and packs and row.prompt == pair.prompt:
            row.answers.append(pair.answer)
            continue
        if row is not None:
            yield row
        row = _Row(pair.prompt, [pair.answer])
    if row is not None:
        yield row


def _chunks(weights: Weights, prompts: Prompts, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """As many rows as make a batch, and as the mask and the logits have room for."""
    vocabulary = weights.model.config.get_text_config().vocab_size
    chunk: list[_Row] = []
    for row in rows:
        tail, width = (max(f(r) for r in [*chunk, row]) for f in (lambda r: r.tail, lambda r: len(r.prompt)))
        entries = max((tail + width) ** 2, (tail + 1) * vocabulary) * (len(chunk) + 1)
        if chunk and (prompts.is_full(len(chunk) + 1, width + tail) or entries > _MOST):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


@torch.inference_mode()
def _judged(weights: Weights, prompts: Prompts, rows: Sequence[_Row]) -> list[Judged]:
    """Of each answer, row after row."""
    device = weights.device
    shared = shared_prefix(prompts, [row.prompt for row in rows])
    read = weights.num_virtual + len(shared)
    cache = weights.read(shared, len(rows)) if read else None
    width = max(len(row.prompt) for row in rows) - len(shared)
    tail = max(row.tail for row in rows)
    laid = [_laid_out(row, len(shared), width, tail, read) for row in rows]
    tokens, positions, pieces = (torch.tensor(parts, device=device) for parts in zip(*laid, strict=True))
    mask = _mask(pieces, read, weights.model.dtype) if any(len(r.answers) > 1 for r in rows) else _plain(pieces, read)
    logits = weights.forward(tokens, mask, positions, cache, tail + 1)[:, -tail - 1 :]
    log_sums, likeliest = logits.float().logsumexp(-1).double(), logits.argmax(-1)
    # of each token that is judged: its row, the column of the logits that it is chosen by, and itself
    places = [(r, c, token) for r, row in enumerate(rows) for c, token in _judged_by(row)]
    row_of, column, target = torch.tensor(places, device=device).unbind(-1)
    nats = (logits[row_of, column, target].double() - log_sums[row_of, column]).tolist()
    hits = (likeliest[row_of, column] == target).tolist()
    found, begin = [], 0
    for answer in (answer for row in rows for answer in row.answers):
        end = begin + len(answer)
        found.append((math.fsum(nats[begin:end]), all(hits[begin:end])))
        begin = end
    return found


def _laid_out(row: _Row, shared: int, width: int, tail: int, read: int) -> tuple[list[int], list[int], list[int]]:
    """Token, position, and piece of each column: 0 for the prompt, 1, 2, … for the answers, -1 for padding.

    Prompts end in the same column, and behind them stand the answers, so that the logits wanted are the last ones.
    """
    prompt, before = row.prompt[shared:], width - len(row.prompt) + shared
    tokens, positions, pieces = [0] * before + prompt, [read] * before, [-1] * before + [0] * len(prompt)
    positions += range(read, read + len(prompt))
    for piece, answer in enumerate(row.answers, 1):
        tokens += answer[:-1]
        positions += range(read + len(prompt), read + len(prompt) + len(answer) - 1)
        pieces += [piece] * (len(answer) - 1)
    behind = tail - row.tail
    return tokens + [0] * behind, positions + [read] * behind, pieces + [-1] * behind


def _judged_by(row: _Row) -> Iterator[tuple[int, int]]:
    """Column of the logits, of which the prompt's last one is 0, and token."""
    column = 0
    for answer in row.answers:
        yield 0, answer[0]
        for token in answer[1:]:
            column += 1
            yield column, token


def _plain(pieces: Tensor, read: int) -> Tensor:
    """(rows, cached and new tokens): 1 for what is no padding. For rows of one answer each."""
    return torch.nn.functional.pad((pieces >= 0).long(), (read, 0), value=1)


def _mask(pieces: Tensor, read: int, dtype: torch.dtype) -> Tensor:
    """(rows, 1, new tokens, cached and new tokens): 0 for what a token sees, the lowest number elsewhere.

    It sees what was read, the prompt, and of its own piece what is not behind it.
    """
    width = pieces.shape[1]
    seen = (pieces[:, None, :] == 0) | (pieces[:, None, :] == pieces[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool, device=pieces.device).tril()
    seen = torch.nn.functional.pad(seen, (read, 0), value=True)
    return torch.zeros(seen.shape, dtype=dtype, device=pieces.device).masked_fill_(~seen, torch.finfo(dtype).min)[
        :, None
    ]
