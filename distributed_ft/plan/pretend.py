"""A world of any size without its machines: tensors without memory, and a process group that nobody else is in.

`FakeTensorMode` runs a program on tensors that have shape, dtype and device but no data; the "fake" process group says
of every collective that it is done. The program that runs is the trainer's own. What it asks of data that is not there
(is the loss finite?) is answered with 1.0.

The device is "cpu" whatever is planned for: the same code runs there, without a driver. What a GPU does otherwise is
said in `distributed_ft.plan.measure`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import Signature, signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from distributed_ft.parallel.world import World
from distributed_ft.plan.ledger import Ledger, Watch, within

_SHARDED_TENSORS = "torch/distributed/tensor/"  # which counts with tensors where a shard begins
_A_NUMBER = 1.0  # what a tensor without data says when it is asked for its value: finite, and no zero


class OneOfMany(World):
    """Rank 0 of a world whose other ranks have the same as it has, and where it is always its turn."""

    def has_turn(self, turn: int) -> bool:
        return True

    def sum(self, *values: float) -> tuple[float, ...]:
        return tuple(float(v) * self.size for v in values)

    def from_rank(self, source: int, value: Any) -> Any:
        return value

    def agree(self, problem: Exception | None) -> None:
        if problem is not None:
            raise problem


@contextmanager
def world_of(size: int) -> Iterator[World]:
    """Rank 0 of `size`, for as long as the context lasts; no other process group may be there."""
    assert not dist.is_initialized(), "a process that trains cannot plan"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield OneOfMany(0, size, 0, torch.device("cpu"), imagined=True)
    finally:
        dist.destroy_process_group()


@contextmanager
def without_memory(ledger: Ledger, vocabulary: int, on_gpu: bool) -> Iterator[None]:
    """Tensors that are made meanwhile have no data, and are entered in the ledger, as those of a GPU's kernels or a
    CPU's."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _buckets_as_they_are(), _plain_quantized_parameters(), mode, _FakeWatch(ledger, vocabulary, mode, on_gpu):
        yield


@contextmanager
def with_memory() -> Iterator[None]:
    """What is made meanwhile is real, and in no ledger: models on the meta device, which have no memory anyhow."""
    with _disable_current_modes():
        yield


def _is_known(tensor: Tensor) -> bool:
    """Whether it is computed with as it is: a number on the host, or one of a model on the meta device, which may be
    cut into hundreds of shards (that takes long with what `FakeTensorMode` makes)."""
    return not isinstance(tensor, FakeTensor) and (tensor.is_meta or not tensor.is_floating_point())


def let_go(module: nn.Module, device: str) -> None:
    """Put a tensor without data in the place of each parameter (on `device`) and buffer that has some; tied ones stay
    tied."""
    made: dict[int, Tensor] = {}
    built = []  # what the ledger shall know of: it was in host memory
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None or tensor.is_meta or isinstance(tensor, FakeTensor):
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if held is part._parameters and device == "meta":
                        built.append(fake)
                        with with_memory():
                            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, tensor.requires_grad)
                        vars(fake).update(vars(tensor))  # how a quantised one is packed
                    made[id(tensor)] = fake
                held[name] = made[id(tensor)]  # type: ignore[assignment]


@contextmanager
def _buckets_as_they_are() -> Iterator[None]:
    """DDP lays its buckets out anew after the first step, in an order that rank 0 tells the others: in data. Their size
    is the same."""
    reducer: Any = torch._C._distributed_c10d.Reducer
    original = reducer._rebuild_buckets
    reducer._rebuild_buckets = lambda _: False
    try:
        yield
    finally:
        reducer._rebuild_buckets = original


@contextmanager
def _plain_quantized_parameters() -> Iterator[None]:
    """bitsandbytes' parameters are tensors of a class of their own, which a tensor without data cannot become: while it
    lasts, they are plain parameters that know what those know."""
    if find_spec("bitsandbytes") is None:
        yield
        return
    from bitsandbytes.nn import Int8Params, Params4bit

    originals = {kind: kind.__new__ for kind in (Params4bit, Int8Params)}
    for kind, original in originals.items():
        kind.__new__ = staticmethod(_plain(signature(original)))
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__new__ = original


def _plain(asked: Signature) -> Callable[..., nn.Parameter]:
    def new(*args: Any, **kwargs: Any) -> nn.Parameter:
        given = asked.bind(*args, **kwargs)
        given.apply_defaults()
        known = {name: value for name, value in given.arguments.items() if name not in ("cls", "data", "kwargs")}
        data = given.arguments["data"]
        made = nn.Parameter(torch.empty(0) if data is None else data, known.pop("requires_grad"))
        if known.get("blocksize", 0) is None:
            known["blocksize"] = 64
        vars(made).update(known)
        return made

    return new


class _FakeWatch(Watch):
    """What `FakeTensorMode` cannot do: numbers on the host (where a document or a shard begins) stay numbers, and a
    kernel that allocates inside itself is taken apart."""

    def __init__(self, ledger: Ledger, vocabulary: int, mode: FakeTensorMode, on_gpu: bool) -> None:
        super().__init__(ledger, vocabulary)
        self.mode = mode
        self.on_gpu = on_gpu

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        counts = func._overloadpacket is torch.ops.aten.arange and within(_SHARDED_TENSORS)
        if counts or (tensors and all(map(_is_known, tensors)) and "device" not in kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            return _A_NUMBER
        if func.namespace == "bitsandbytes" and (inside := self._inside(func._opname)) is not None:
            with self:  # a mode is off while it works, and the parts shall be seen
                return inside(*args, **kwargs)
        if not self.on_gpu and func._opname == "_reduce_scatter_base_":
            with self:  # gloo sums all of it, in a copy
                torch.empty_like(args[1])
        result = func(*args, **kwargs)
        # A tensor that is remembered here cannot be exchanged, which `Module.to` does.
        self.mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        return result

    def _inside(self, name: str) -> Callable[..., Any] | None:
        """What a kernel of bitsandbytes that needs memory does, in operations that can be seen."""
        if name == "gemm_4bit":
            from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl

            return _gemm_4bit_default_impl  # type: ignore[no-any-return]
        if name == "optimizer_update_8bit_blockwise" and not self.on_gpu:
            from bitsandbytes.backends.cpu.ops import _optimizer_update_8bit_blockwise_cpu

            return _optimizer_update_8bit_blockwise_cpu  # type: ignore[no-any-return]
        return None
