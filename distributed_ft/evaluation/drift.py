"""How far a checkpoint's predictions are from the base's on held-out text that neither is asked about.

Forgetting counts the answers that are lost; this sees a change before any answer does. At every token of the texts the
divergence KL(base || tuned) of the two distributions of the next token is summed over the whole vocabulary, not over
samples of it; the figure is its mean in nats per token. The direction is that of forgetting: large where the base is
sure and the tuned model is not (Kullback and Leibler 1951).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distributed_ft.artifacts import RunDirectory, read_json, write_json
from distributed_ft.data.chat import render_all
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import Reading, read
from distributed_ft.errors import CheckpointError, DataError, EvaluationError
from distributed_ft.evaluation.scoring import Model
from distributed_ft.evaluation.significance import t_quantile
from distributed_ft.evaluation.stats import mean
from distributed_ft.records import Drift

SHIPPED_TEXT = Path(__file__).parents[1] / "assets" / "general" / "generic.jsonl"
BUDGET = 2 * 2**30  # bytes of the base's log-probabilities that are kept in host memory
VERSION = 1


@runtime_checkable
class Predicts(Protocol):
    """An engine that tells what it expects of every next token."""

    @property
    def context(self) -> int | None: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...
    @property
    def settings(self) -> Mapping[str, str | int]: ...
    def use(self, weights: Path | None, strength: float = 1.0) -> None: ...
    def log_probabilities(self, tokens: Sequence[int]) -> Tensor: ...


class GenericText:
    """The texts as the base reads them, and what it expects in them, once it was asked."""

    def __init__(self, path: str, engine: Predicts) -> None:
        """`path`: `shipped`, or a file of rows. Raises DataError for a file that is none, or says too little."""
        examples = list(read(Reading(str(SHIPPED_TEXT if path == "shipped" else path))))
        self._engine = engine
        self._texts = _tokens(examples, engine)
        self.digest = _digest(self._texts, engine.settings)
        self._base: list[Tensor] | None = None

    def ask_base(self) -> None:
        """Once; leaves the engine with the base's weights. Raises EvaluationError."""
        if self._base is None:
            self._engine.use(None)
            self._base = [self._engine.log_probabilities(text).cpu() for text in self._texts]

    def measure(self, run: RunDirectory, model: Model) -> Drift:
        """Ask the engine, which answers as `model`, when the base was asked, and store. Raises EvaluationError."""
        assert model.digest is not None, "a checkpoint that is gone cannot be asked"
        assert self._base is not None, "ask_base() comes first"
        try:
            pairs = zip(self._base, self._texts, strict=True)
            sums = [divergence(base, self._engine.log_probabilities(text)) for base, text in pairs]
        except EvaluationError as error:
            raise EvaluationError(f"{model.name}, evaluation.generic_text: {error}") from None
        counts = [len(text) - 1 for text in self._texts]
        kl, stderr, low, high = per_token(sums, counts)
        found = Drift(
            model=model.name,
            kl=kl,
            stderr=stderr,
            low=low,
            high=high,
            tokens=sum(counts),
            texts=len(counts),
            model_digest=model.digest,
            text_digest=self.digest,
        )
        run.drift(model.name).parent.mkdir(parents=True, exist_ok=True)
        write_json(run.drift(model.name), found.model_dump(by_alias=True))
        return found

    def stored(self, run: RunDirectory, model: Model) -> Drift | None:
        """The stored figure, if it is of this very model and these texts."""
        found = read_drift(run, model.name)
        same = found is not None and found.text_digest == self.digest and model.digest in (None, found.model_digest)
        return found if same else None


def read_drift(run: RunDirectory, model: str) -> Drift | None:
    """What is on disk of a model; None for nothing, or what a new measurement will replace."""
    try:
        return Drift(**read_json(run.drift(model)))
    except (CheckpointError, ValidationError, TypeError, OSError):
        return None


def divergence(base: Tensor, tuned: Tensor) -> float:
    """Sum over the tokens of KL(base || tuned), in nats; of log-probabilities (tokens, vocabulary)."""
    expected = base.to(tuned.device)
    return max(0.0, float((expected.exp() * (expected - tuned)).sum(-1, dtype=torch.float64).sum()))  # not for rounding


def per_token(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float, float]:
    """Mean a token, its standard error and 95% interval (Student's), from sums over texts of so many tokens.

    The tokens of a text are a cluster: a ratio of two means, with the standard error of its residuals (Cochran 1977,
    Sampling Techniques, section 6.4).
    """
    ratio = sum(sums) / sum(counts)
    size = sum(counts) / len(counts)
    stderr = mean([(s - ratio * n) / size for s, n in zip(sums, counts, strict=True)]).stderr
    half = t_quantile(0.975, len(sums) - 1) * stderr
    return ratio, stderr, max(0.0, ratio - half), ratio + half


def _tokens(examples: Sequence[Example], engine: Predicts) -> list[list[int]]:
    """Of each text, cut so that the base's log-probabilities of all of them fit into the budget, and the context."""
    tokenizer = engine.tokenizer
    most = BUDGET // (4 * len(tokenizer) * max(1, len(examples)))
    most = max(
        2, most if engine.context is None else min(most, engine.context // 2)
    )  # virtual tokens need room as well
    texts = [rendered.ids[:most] for rendered in render_all(tokenizer, examples)]
    short = [e for e, text in zip(examples, texts, strict=True) if len(text) < 2]
    if short:
        place = f"{short[0].path}:{short[0].line}"
        raise DataError(f"{place}: evaluation.generic_text: a text of one token, in which nothing is to be expected")
    if len(texts) < 2:
        raise DataError(
            f"evaluation.generic_text: {examples[0].path}: {len(texts)} text; give several, for an interval is of texts"
        )
    return texts


def _digest(texts: Sequence[Sequence[int]], settings: Mapping[str, str | int]) -> str:
    how = {key: settings[key] for key in ("engine", "dtype") if key in settings}
    return hashlib.sha256(json.dumps([VERSION, texts, how], sort_keys=True).encode()).hexdigest()
