"""Log-likelihoods, a batch at a time: what several continuations stand behind is read once.

The choices of an item share its prompt, and the prompts of a batch often begin alike. So the common beginning goes into
the cache once, then each prompt once, then only the choices; the first token of a choice needs no more than its
prompt's logits. It is the same sum as that of one pass over prompt and choice, by the chain rule.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.engines.decoding import read_shared
from distributed_ft.evaluation.engines.prompts import Prompts
from distributed_ft.evaluation.engines.weights import Weights
from distributed_ft.evaluation.likelihood import Continuation
from distributed_ft.evaluation.task import Choose, Read, Response

Judged = tuple[float, bool]  # log-likelihood in nats, and whether each token is the likeliest
_WORTH = 1.5  # tokens of a plain pass to tokens through the cache, from which on the further passes pay


def judge(weights: Weights, prompts: Prompts, requests: Sequence[Choose | Read]) -> list[Response]:
    """The answers of one batch, in the order of the requests."""
    pairs = [prompts.continuations(request) for request in requests]
    everything = [pair for of_request in pairs for pair in of_request]
    chunks = [everything[i : i + prompts.batch_size] for i in range(0, len(everything), prompts.batch_size)]
    judged = iter([found for chunk in chunks for found in _judged(weights, prompts, chunk)])
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
def _judged(weights: Weights, prompts: Prompts, pairs: Sequence[Continuation]) -> list[Judged]:
    # in caches that forget by distance, padding between prompt and answer would push out what is to be seen
    return _through_cache(weights, prompts, pairs) if _is_worth(prompts, pairs) else _in_one_pass(weights, pairs)


def _is_worth(prompts: Prompts, pairs: Sequence[Continuation]) -> bool:
    """Whether enough tokens are saved."""
    different = {tuple(pair.prompt) for pair in pairs}
    plain = sum(len(pair.prompt) + len(pair.answer) - 1 for pair in pairs)
    shared = sum(map(len, different)) + sum(len(pair.answer) - 1 for pair in pairs)
    return prompts.sees_all and plain >= _WORTH * shared


def _through_cache(weights: Weights, prompts: Prompts, pairs: Sequence[Continuation]) -> list[Judged]:
    device = weights.device
    different = list(dict.fromkeys(tuple(pair.prompt) for pair in pairs))
    place = {prompt: i for i, prompt in enumerate(different)}
    of = [place[tuple(pair.prompt)] for pair in pairs]
    cache = weights.virtual_tokens()
    shared = read_shared(weights, prompts, cache, different)
    read = weights.num_virtual + shared
    if read:
        cache.batch_repeat_interleave(len(different))
    tokens, shown = _left_padded([prompt[shared:] for prompt in different], device)
    mask = torch.cat([torch.ones(len(different), read, dtype=torch.long, device=device), shown], dim=-1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, read:]
    first = weights.forward(tokens, mask, positions, cache, 1)[:, -1:]
    longer = [i for i, pair in enumerate(pairs) if len(pair.answer) > 1]
    behind = {}
    if longer:
        tails = [pairs[i].answer[:-1] for i in longer]  # nothing follows the last token
        width = max(map(len, tails))
        rows = torch.tensor([of[i] for i in longer], device=device)
        cache.batch_select_indices(rows)
        more = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in tails], device=device)
        full = torch.cat([mask[rows], more], dim=-1)
        at = (full.cumsum(-1) - 1)[:, -width:]  # padding stays at the last one's
        ids = torch.tensor([t + [0] * (width - len(t)) for t in tails], device=device)
        behind = dict(zip(longer, weights.forward(ids, full, at, cache, width)[:, -width:], strict=True))
    found = []
    for i, pair in enumerate(pairs):
        logits = first[of[i]] if i not in behind else torch.cat([first[of[i]], behind[i][: len(pair.answer) - 1]])
        found.append(_sum(logits, pair.answer))
    return found


def _in_one_pass(weights: Weights, pairs: Sequence[Continuation]) -> list[Judged]:
    """Each prompt with its answer, in one row."""
    cache = weights.virtual_tokens() if weights.num_virtual else None
    if cache is not None:
        cache.batch_repeat_interleave(len(pairs))
    tokens, shown = _left_padded([pair.prompt + pair.answer[:-1] for pair in pairs], weights.device)
    virtual = torch.ones(len(pairs), weights.num_virtual, dtype=torch.long, device=weights.device)
    mask = torch.cat([virtual, shown], dim=-1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, weights.num_virtual :]
    logits = weights.forward(tokens, mask, positions, cache, max(len(pair.answer) for pair in pairs))
    return [_sum(row[-len(pair.answer) :], pair.answer) for row, pair in zip(logits, pairs, strict=True)]


def _sum(logits: Tensor, answer: list[int]) -> Judged:
    """`logits`: (tokens of the answer, vocabulary), each row those that the token is chosen by."""
    log_shares = logits.float().log_softmax(-1)
    target = torch.tensor(answer, device=logits.device)
    nats = log_shares.gather(-1, target[:, None]).sum(dtype=torch.float64)
    return float(nats), bool((log_shares.argmax(-1) == target).all())


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask, (rows, longest)."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask
