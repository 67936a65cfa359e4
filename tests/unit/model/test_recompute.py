"""What is recomputed changes memory, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.tiny import make_model
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed_ft.config.schema import FullMethod, LoraMethod, MethodConfig, Recompute
from distributed_ft.data.batches import MicroBatch
from distributed_ft.errors import ConfigError
from distributed_ft.model import methods
from distributed_ft.model.load import build_empty
from distributed_ft.model.recompute import set_recompute
from distributed_ft.model.token_loss import TokenLoss

MODES: tuple[Recompute, ...] = get_args(Recompute)


class Alive(TorchDispatchMode):
    """Bytes of storages that operations under it made and that something still holds.

    (Hooks on saved tensors do not see what a recomputed layer keeps: its inputs.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


def batch() -> MicroBatch:
    ids = torch.arange(256)[None] % 250
    positions, ends = torch.arange(128).repeat(2)[None], torch.tensor([0, 128, 256], dtype=torch.int32)
    return MicroBatch(ids, positions, ends, 128, torch.arange(0, 100), ids[0, 1:101])


def held_and_gradients(mode: Recompute, method: MethodConfig) -> tuple[int, float, list[Tensor]]:
    """Bytes held between forward and backward pass, the loss, and the gradients."""
    model = make_model("llama", hidden_size=64, intermediate_size=224, num_hidden_layers=6)
    set_recompute(model, mode)
    loss = TokenLoss(methods.apply(model.train(), method))
    with Alive() as alive:
        value = loss(batch())
        held = alive.bytes()
    value.backward()
    return held, float(value), [p.grad for p in loss.parameters() if p.grad is not None]


@pytest.mark.parametrize("method", [FullMethod(type="full"), LoraMethod(rank=4)], ids=["full", "lora"])
def test_none_holds_more_than_selective_which_holds_more_than_full_and_gradients_are_equal(
    method: MethodConfig,
) -> None:
    torch.manual_seed(0)
    found = {}
    for mode in MODES:
        torch.manual_seed(0)  # LoRA's matrices
        found[mode] = held_and_gradients(mode, method)
    (none, loss, gradients), (selective, *_), (full, *_) = (found[mode] for mode in MODES)
    assert full < 0.8 * selective < 0.8 * 0.8 * none
    for _, other, others in found.values():
        assert other == loss
        for got, expected in zip(others, gradients, strict=True):
            assert torch.equal(got, expected)


def test_an_architecture_without_layers_that_recompute_alone_is_refused_before_it_is_loaded(
    bases: Callable[..., Path],
) -> None:
    from distributed_ft.config.schema import ModelConfig

    base = str(bases("llama", num_hidden_layers=1))
    with pytest.raises(ConfigError, match=r"selective: LlamaForCausalLM can only recompute all layers; write full"):
        build_empty(ModelConfig(base=base, gradient_checkpointing="selective"))
