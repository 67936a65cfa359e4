"""Which rows make up the global batch of an optimizer step: a pure function of (seed, data, step).

Neither the world size nor any state enters, so a resumed run, on any number of processes, sees what the
uninterrupted one would have seen. All randomness comes from the raw output of Philox (Salmon et al. 2011), keyed by
sha256(seed, data digest, purpose): numpy promises that stream across versions, as it does not for `shuffle`.

An epoch: the rows that are drawn, shuffled, packed (best-fit-decreasing), the packs shuffled, then cut into global
batches. The last batch of an epoch may be short; no batch mixes two epochs.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property

import numpy as np

from distributed_ft.config.schema import RunConfig
from distributed_ft.data.packing import one_each, pack
from distributed_ft.data.store import IntArray, PreparedData

Pack = tuple[tuple[int, int], ...]  # (source, row in the source) of each document of one sequence


def epoch_counts(
    sizes: Sequence[int], weights: Sequence[float] | None, fractions: Sequence[float | None] | None = None
) -> list[int]:
    """Rows that an epoch takes from each source of `sizes` rows.

    Without weights: all. With weights the shares are f_i = w_i / sum(w), and the epoch is over when the first source
    has been seen once: floor(min_i sizes_i / f_i) rows, dealt by largest remainder. With fractions, sources that have
    none are seen whole, n rows, and the others are f_i of the n / (1 - sum(f)) rows of the epoch, rounded: a small
    source is seen more than once in it, of a large one another part in each epoch.
    """
    if fractions is not None:
        exact_fractions = [None if f is None else Fraction(str(f)) for f in fractions]
        whole = sum(n for n, f in zip(sizes, exact_fractions, strict=True) if f is None)
        rows = whole / (1 - sum(f for f in exact_fractions if f is not None))
        return [n if f is None else max(1, round(rows * f)) for n, f in zip(sizes, exact_fractions, strict=True)]
    if weights is None:
        return list(sizes)
    exact = [Fraction(str(w)) for w in weights]  # 0.15 means 15/100, not the nearest binary fraction
    shares = [w / sum(exact) for w in exact]
    total = math.floor(min(n / f for n, f in zip(sizes, shares, strict=True)))
    quotas = [total * f for f in shares]
    counts = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


class Order:
    """The sequence of global batches. `step` counts the optimizer steps completed before the batch: 0 is the first."""

    def __init__(
        self,
        prepared: PreparedData,
        *,
        seed: int,
        seq_len: int,
        packing: bool,
        global_batch_size: int,
        epochs: float,
        max_steps: int | None = None,
    ) -> None:
        self.prepared = prepared
        self.seed, self.seq_len, self.packing = seed, seq_len, packing
        self.global_batch_size, self.epochs, self.max_steps = global_batch_size, epochs, max_steps
        self.counts = epoch_counts([len(store) for store in prepared.train], prepared.weights, prepared.fractions)
        self._digest = prepared.digest
        self._first_row = np.cumsum([0, *(len(store) for store in prepared.train)])  # of each source, in one numbering
        self._lengths = np.concatenate([store.lengths for store in prepared.train])
        self._first_step = [0]  # of each epoch, as far as known
        self._cached: tuple[int, IntArray, list[list[int]]] | None = None  # the current epoch only

    @staticmethod
    def of(config: RunConfig, prepared: PreparedData) -> "Order":
        """The order that a run's configuration asks for."""
        return Order(
            prepared,
            seed=config.seed,
            seq_len=config.data.seq_len,
            packing=config.data.packing,
            global_batch_size=config.optim.global_batch_size,
            epochs=config.optim.epochs,
            max_steps=config.optim.max_steps,
        )

    # --- steps and epochs ---

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; with a mixture and packing later ones may differ a little."""
        return self._steps_of(0)

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the run: `max_steps`, else `epochs`, the last one in part and rounded up."""
        if self.max_steps is not None:
            return self.max_steps
        whole = math.floor(self.epochs)
        part = self.epochs - whole
        steps = sum(self._steps_of(e) for e in range(whole)) if self._epochs_differ else whole * self.steps_per_epoch
        # 1e-9: 0.3 epochs of 10 steps are 3 steps, though the float product is 3.0000000000000004 for some
        return max(1, steps + (math.ceil(part * self._steps_of(whole) - 1e-9) if part else 0))

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps: 1.5 is the middle of the second."""
        number = self._epoch_of(step)
        return number + (step - self._first_step[number]) / self._steps_of(number)

    @property
    def _epochs_differ(self) -> bool:
        mixed = self.prepared.weights is not None or self.prepared.fractions is not None
        return mixed and self.packing

    def _epoch_of(self, step: int) -> int:
        while self._first_step[-1] <= step:
            number = len(self._first_step) - 1
            self._first_step.append(self._first_step[number] + self._steps_of(number))
        return bisect_right(self._first_step, step) - 1

    def _steps_of(self, epoch: int) -> int:
        if epoch + 1 < len(self._first_step):
            return self._first_step[epoch + 1] - self._first_step[epoch]
        if epoch and not self._epochs_differ:
            return self.steps_per_epoch  # the same lengths are packed in every epoch, so the same number of packs
        return math.ceil(self.num_packs(epoch) / self.global_batch_size)

    # --- batches ---

    def global_batch(self, step: int) -> list[Pack]:
        """The packs of a step, at most `global_batch_size`, at least one; beyond `total_steps` it goes on as before."""
        number = self._epoch_of(step)
        first = (step - self._first_step[number]) * self.global_batch_size
        rows, groups = self._packs(number)
        batch = groups[first : first + self.global_batch_size]
        return [tuple(self._locate(int(rows[position])) for position in group) for group in batch]

    def sample_ids(self, step: int) -> list[str]:
        """Ids of the rows of a step, in the order of its packs."""
        return [self.prepared.train[s].id(i) for documents in self.global_batch(step) for s, i in documents]

    def digest(self, step: int) -> str:
        """16 hex digits that stand for `sample_ids(step)` and how they are packed."""
        ids = [[self.prepared.train[s].id(i) for s, i in documents] for documents in self.global_batch(step)]
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]

    def num_packs(self, epoch: int) -> int:
        """Sequences of an epoch."""
        return len(self._packs(epoch)[1])

    def num_tokens(self, epoch: int) -> int:
        """Tokens of the rows drawn in an epoch."""
        return int(self._lengths[self._packs(epoch)[0]].sum())

    def num_supervised(self, epoch: int) -> int:
        """Of them, those that are learned."""
        return int(self._targets[self._packs(epoch)[0]].sum())

    @cached_property
    def _targets(self) -> IntArray:
        return np.concatenate([store.targets() for store in self.prepared.train])

    def _locate(self, row: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return source, row - int(self._first_row[source])

    def _packs(self, epoch: int) -> tuple[IntArray, list[list[int]]]:
        """The epoch's rows in shuffled order, and its packs as positions in it."""
        if self._cached is None or self._cached[0] != epoch:
            rows = np.concatenate([self._drawn(source, epoch) for source in range(len(self.counts))])
            rows = rows[self._permutation(len(rows), f"rows of epoch {epoch}")]
            groups = pack(self._lengths[rows], self.seq_len) if self.packing else one_each(len(rows))
            groups = [groups[i] for i in self._permutation(len(groups), f"packs of epoch {epoch}")]
            self._cached = (epoch, rows, groups)
        return self._cached[1], self._cached[2]

    def _drawn(self, source: int, epoch: int) -> IntArray:
        """Rows of a source in an epoch: the next stretch of permutation after permutation of all its rows."""
        size, count = len(self.prepared.train[source]), self.counts[source]
        first = epoch * count
        parts = [np.empty(0, dtype=np.int64)]
        for wrap in range(first // size, -(-(first + count) // size)):
            order = self._permutation(size, f"source {source}, wrap {wrap}")
            parts.append(order[max(0, first - wrap * size) : first + count - wrap * size])
        rows: IntArray = np.concatenate(parts) + self._first_row[source]
        return rows

    def _permutation(self, size: int, purpose: str) -> IntArray:
        key = hashlib.sha256(f"{self.seed}|{self._digest}|{purpose}".encode()).digest()[:16]
        numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
        order: IntArray = np.argsort(numbers, kind="stable")
        return order
