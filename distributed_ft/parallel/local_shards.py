"""An optimizer that knows no DTensor, on what each rank holds; and its state on disk.

bitsandbytes keeps moments in 8 bits, in blocks of 256 elements with a scale each (Dettmers et al. 2021,
arXiv:2110.02861). Blocks begin at the shard's first element, so a shard's state belongs to that shard: it is stored
under the shard's name and read by as many ranks as wrote it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from distributed_ft.errors import CheckpointError

Groups = list[dict[str, Any]]


class LocalShards(Optimizer):
    """Its parameters are the module's (for clipping and the learning rate); `inner` has the local tensor of each.

    The rank with an empty shard of a small parameter has nothing to update in it.
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], Optimizer]) -> None:
        super().__init__(groups, {})
        self.local = {p: local(p.detach()) for group in self.param_groups for p in group["params"]}
        assert all(shard.is_contiguous() for shard in self.local.values()), "else bitsandbytes updates a copy"
        self.inner = make([{**g, "params": [self.local[p] for p in g["params"]]} for g in self.param_groups])
        self.state = self.inner.state  # by local tensor: what is held, and how much

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update with the gradients' local parts; each group's `lr` is taken over."""
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
        for p, shard in self.local.items():
            shard.data = local(p.detach())  # FSDP2 may have moved it when it first ran
            shard.grad = None if p.grad is None or not shard.numel() else local(p.grad)
        self.inner.step()
        for shard in self.local.values():
            shard.grad = None

    def shards(self, model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
        """(parameter's name, `shard 1 of 2`, local tensor) of each parameter that this rank has a part of."""
        for name, p in model.named_parameters():
            if p in self.local and self.local[p].numel():
                yield name, _shard_of(p), self.local[p]

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of this rank's shards. Ranks with the same shard (copies) have the same keys and values."""
        found: dict[str, Tensor] = {}
        for name, shard, tensor in self.shards(model):
            for part, value in self.inner.state.get(tensor, {}).items():
                found[f"{name}/{part}/{shard}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return found

    def restore(self, model: nn.Module, directory: Path, prefix: str) -> None:
        """Read what `stored` gave and was saved under `prefix`. A collective.

        Raises CheckpointError on every rank when the parameters were cut into another number of shards.
        """
        there: dict[str, Any] = FileSystemReader(directory).read_metadata().state_dict_metadata
        self._check_shards(model, [key.removeprefix(f"{prefix}.") for key in there], directory)
        wanted: dict[str, Tensor] = {}
        for name, shard, _ in self.shards(model):
            for key, meta in there.items():
                if key.startswith(f"{prefix}.{name}/") and key.endswith(f"/{shard}"):
                    assert isinstance(meta, TensorStorageMetadata)
                    wanted[key.removeprefix(f"{prefix}.")] = torch.empty(meta.size, dtype=meta.properties.dtype)
        state_dict_loader.load({prefix: wanted}, checkpoint_id=directory)
        self._fill(model, wanted)

    def _check_shards(self, model: nn.Module, stored: list[str], directory: Path) -> None:
        numbers = {key.split("/")[0]: key.rpartition(" ")[2] for key in stored if "/" in key}
        for name, p in model.named_parameters():
            number = _shard_of(p).rpartition(" ")[2]
            if p in self.local and numbers.get(name, number) != number:
                raise CheckpointError(
                    f"{directory}: the moments of an 8-bit optimizer belong to the {numbers[name]} shards that they "
                    f"were trained in (their scales are of blocks within them), and now there are {number}; continue "
                    f"with {numbers[name]} processes, or start a new run from the checkpoint's model"
                )

    def _fill(self, model: nn.Module, stored: dict[str, Tensor]) -> None:
        """Put stored values into buffers that the inner optimizer makes itself (paged ones are made in its own way)."""
        places = {p: (g, i) for g, group in enumerate(self.inner.param_groups) for i, p in enumerate(group["params"])}
        for name, shard, tensor in self.shards(model):
            values = {
                key.split("/")[1]: value
                for key, value in stored.items()
                if key.startswith(f"{name}/") and key.endswith(f"/{shard}")
            }
            if not values:  # no step was made yet
                continue
            g, i = places[tensor]
            self.inner.init_state(self.inner.param_groups[g], tensor, g, i)  # type: ignore[attr-defined]
            state = self.inner.state[tensor]
            for part, value in values.items():
                if isinstance(state[part], Tensor):
                    state[part].copy_(value)
                else:
                    state[part] = value.item()


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard_of(p: Tensor) -> str:
    """`shard 1 of 2`: where a parameter's part stands on the sharded dimensions of its mesh."""
    index, number = 0, 1
    if isinstance(p, DTensor):
        coordinate = p.device_mesh.get_coordinate()
        assert coordinate is not None
        for dimension, placement in enumerate(p.placements):
            if placement.is_shard():
                index = index * p.device_mesh.size(dimension) + coordinate[dimension]
                number *= p.device_mesh.size(dimension)
    return f"shard {index + 1} of {number}"
