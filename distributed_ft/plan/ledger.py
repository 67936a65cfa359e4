"""What was allocated when: a ledger of storages, read off every operation, whether its tensors are real or fake.

A storage is entered when an operation first returns a tensor on it, and struck out when it is freed. So the ledger
knows what lives at any moment and why, as an allocator does that never splits or caches. What a kernel allocates inside
itself is not seen.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

LOADING = ("build", "built", "setup")  # the phases before the first step
_SHARDING = "torch/distributed/fsdp/_fully_shard"
_LAYING_OUT = "torch/distributed/tensor/_sharding_prop"
_FRAMES = 20  # how far up a call is looked for: torch's own code allocates not far below


@dataclass(slots=True)
class Block:
    """Memory of one storage. size: bytes; born, died: moments (numbers of entries in the ledger); None: lives."""

    size: int
    born: int
    phase: str
    kind: str
    died: int | None = None


class Ledger:
    """Blocks in the order in which they were allocated, by phases and segments of them that the caller names."""

    def __init__(self, granule: int = 1) -> None:
        """`granule`: bytes that a block is rounded up to a multiple of (512: torch's allocator of GPU memory)."""
        self.blocks: list[Block] = []
        self.phase = ""
        self.segments: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (phase, name) -> first and last moments
        self.granule = granule
        self._now = 0
        self._segment: tuple[tuple[str, ...], int] = ((), 0)  # names and first moment
        self._living: dict[int, tuple[weakref.ref[Any], Block]] = {}

    @contextmanager
    def during(self, phase: str, segment: str = "") -> Iterator[None]:
        """Blocks that are allocated meanwhile belong to `phase`, which begins in `segment`; phases do not nest."""
        self.phase, self._segment = phase, ((segment,), self._tick())
        try:
            yield
        finally:
            self.mark()
            self.phase = ""

    def mark(self, *names: str) -> None:
        """Another segment of the phase begins, if there is a phase; it may have several names."""
        if self.phase:
            before, first = self._segment
            last = self._tick()
            for name in before:
                self.segments.setdefault((self.phase, name), []).append((first, last))
            self._segment = (names, last)

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether it is entered, or has no memory to enter."""
        known = self._living.get(storage._cdata)
        return (known is not None and known[0]() is storage) or not storage.nbytes()

    def enter(self, storage: torch.UntypedStorage, kind: str) -> None:
        """Note a storage, once."""
        if not self.knows(storage):
            self._allocate(storage, storage.nbytes(), kind)

    def resize(self, storage: torch.UntypedStorage, size: int) -> None:
        """A storage whose memory is given back or taken again: FSDP's gathered weights."""
        known = self._living.pop(storage._cdata, None)
        kind = "communication"
        if known is not None:
            known[1].died, kind = self._tick(), known[1].kind
        if size:
            self._allocate(storage, size, kind)

    def label(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what these tensors are, whenever their memory was allocated."""
        for tensor in tensors:
            if tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                self.enter(storage, kind)
                if storage._cdata in self._living:
                    self._living[storage._cdata][1].kind = kind

    def peaks(self, counts: Callable[[Block], bool] = lambda _: True) -> dict[tuple[str, str], dict[str, int]]:
        """By (phase, segment): bytes by kind at the moment when most of the blocks that count lived."""
        counted = [block for block in self.blocks if counts(block)]
        changes = np.zeros(self._now + 2, dtype=np.int64)
        for block in counted:
            changes[block.born] += block.size
            if block.died is not None:
                changes[block.died] -= block.size
        total = changes.cumsum()
        moments = {
            name: max((first + int(total[first : last + 1].argmax()) for first, last in spans), key=lambda m: total[m])
            for name, spans in self.segments.items()
        }
        return {name: _alive(counted, moment) for name, moment in moments.items()}

    def _allocate(self, storage: torch.UntypedStorage, size: int, kind: str) -> None:
        block = Block(-(-size // self.granule) * self.granule, self._tick(), self.phase, kind)
        self.blocks.append(block)
        self._living[storage._cdata] = (weakref.ref(storage, self._freer(storage._cdata)), block)

    def _freer(self, key: int) -> Callable[[Any], None]:
        def free(reference: Any) -> None:
            known = self._living.get(key)
            if known is not None and known[0] is reference:
                known[1].died = self._tick()
                del self._living[key]

        return free

    def _tick(self) -> int:
        self._now += 1
        return self._now


def _alive(blocks: list[Block], moment: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for block in blocks:
        if block.born <= moment and (block.died is None or block.died > moment):
            found[block.kind] += block.size
    return dict(found)


class Watch(TorchDispatchMode):
    """While it lasts, every operation's results are entered in a ledger. `vocabulary`: tokens; what is so wide is
    logits."""

    def __init__(self, ledger: Ledger, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.vocabulary = vocabulary

    def __enter__(self) -> "Watch":
        ledger, resize = self.ledger, torch.UntypedStorage.resize_
        self._resize = resize

        def noted(storage: torch.UntypedStorage, size: int) -> Any:
            ledger.resize(storage, size)
            return resize(storage, size)

        torch.UntypedStorage.resize_ = noted  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(_is_sharded(kind) for kind in types):
            return NotImplemented  # its parts come by one by one
        result = self.call(func, args, kwargs or {})
        for found in tree_iter(result):
            if isinstance(found, Tensor) and found.device.type != "meta":
                storage = found.untyped_storage()
                if not self.ledger.knows(storage) and (kind := self.kind(found)) is not None:
                    self.ledger.enter(storage, kind)
        return result

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute what was asked for."""
        return func(*args, **kwargs)

    def kind(self, tensor: Tensor) -> str | None:
        """What a tensor is that was just made; None: it has no memory, and only shows torch how shards are laid out."""
        if within(_LAYING_OUT):
            return None
        if tensor.ndim and tensor.shape[-1] == self.vocabulary:
            return "logits"
        if self.ledger.phase in LOADING:
            return "loading"
        return "communication" if within(_SHARDING) else "activations"


def _is_sharded(kind: type) -> bool:
    return kind.__name__ in ("DTensor", "AsyncCollectiveTensor")


def within(folder: str) -> bool:
    """Whether what runs was called, not far above the caller, by code in a folder (or file)."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        if folder in frame.f_code.co_filename:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
