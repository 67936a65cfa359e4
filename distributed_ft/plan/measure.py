"""How much memory a run takes: its own code is run for two steps, on tensors without data, and counted.

What is counted is what torch's allocator would have handed out (`memory_allocated`): every tensor, from the moment when
an operation makes it. What no tensor shows comes on top, as a constant (`distributed_ft.plan.gpus`): the driver's
context, the collectives' channels, the matrix products' workspaces, and what the allocator keeps in pieces.

On a GPU other kernels run than on the CPU whose code is followed here. Of attention both keep inputs, outputs and one
number a row; recomputation, sharding, optimizers and the loss are the same code.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distributed_ft.config.schema import FsdpStrategy, RunConfig
from distributed_ft.data.batches import MicroBatch
from distributed_ft.model import methods
from distributed_ft.model.shapes import num_parameters
from distributed_ft.parallel.local_shards import local
from distributed_ft.parallel.strategy import Strategy, make_strategy
from distributed_ft.parallel.world import World
from distributed_ft.plan import depth
from distributed_ft.plan.base import architecture_of, build_base, load_base, settle
from distributed_ft.plan.ledger import Block, Ledger
from distributed_ft.plan.pretend import let_go, with_memory, without_memory, world_of
from distributed_ft.train.optim import make_optimizer
from distributed_ft.train.run import build

GPU_BLOCK = 512  # bytes: torch's allocator of GPU memory hands out multiples of it
KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")
_TRAINING = ("forward", "backward", "step")
_OFFLOADED = ("weights", "gradients", "optimizer")  # what `cpu_offload` keeps in host memory


Figures = dict[str, dict[str, int]]  # name of a moment -> bytes by kind


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, the one with the largest shards.

    parts: what lives on the device at the fullest moment of training, by kind (`KINDS`). loading, saving: the most that
    lives on the device while the model is loaded and sharded, and while a checkpoint's tensors are gathered. host: in
    host memory, while it is loaded (what is built there before it is sharded), in training (what is offloaded) and for
    saving (the copy that `checkpoint.async` writes from).
    """

    parts: dict[str, int]
    moment: str  # the phase with the fullest moment: forward, backward or step
    loading: int
    saving: int
    host: dict[str, int]
    trained: int  # parameters, of the whole model
    parameters: int
    layers: tuple[int, ...] = ()  # depths at which it was measured, if not at the whole depth

    @property
    def training(self) -> int:
        """The most that lives on the device in training."""
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        """The most that lives on the device at all."""
        return max(self.training, self.loading, self.saving)


def measure(config: RunConfig, world_size: int, on_gpu: bool = True, whole: bool = False) -> Memory:
    """Run `config` on rank 0 of `world_size`, without memory; `config.model.base` must be a directory with a
    config.json (see `distributed_ft.plan.base.architecture`). Sequences are full and all of their tokens targets: no
    data needs more.

    A model of many equal layers is run at two small depths, and each moment's bytes are drawn out from these in a
    straight line (`distributed_ft.plan.depth`); `whole`: at its own depth all the same. `on_gpu`: ranks have GPUs,
    whose memory is handed out in blocks, and whose 8-bit optimizer needs none for itself.

    Raises ConfigError as the run itself would, and for what cannot be planned.
    """
    depths = None if whole else depth.enough(config.model)
    if depths is None:
        return _memory(figures(config, world_size, on_gpu))
    with depth.at(config.model, depths.first) as first, depth.at(config.model, depths.second) as second:
        found = [figures(config.model_copy(update={"model": m}), world_size, on_gpu) for m in (first, second)]
    return _memory(depths.extended(*found), (depths.first, depths.second))


def figures(config: RunConfig, world_size: int, on_gpu: bool) -> Figures:
    """What `measure` counts, at this config's own depth."""
    text = architecture_of(config.model.base).get_text_config()
    ledger = Ledger(GPU_BLOCK if on_gpu else 1)
    with world_of(world_size) as world:
        strategy = make_strategy(config, world)
        micro = full_micro_batch(config.data.seq_len, config.optim.micro_batch_size)
        with without_memory(ledger, text.vocab_size, on_gpu):
            rehearsal = _Rehearsal(config, ledger, strategy, micro)
            rehearsal.load(world)
            rehearsal.make_optimizer_state()
            rehearsal.step(min(2, micro_batches_of(config, world_size)))
            rehearsal.save()
        trained, parameters = num_parameters(rehearsal.token_loss)
    return {"parameters": {"trained": trained, "all": parameters}, **_figures(config, ledger)}


@dataclass
class _Rehearsal:
    """A run on one imagined rank."""

    config: RunConfig
    ledger: Ledger
    strategy: Strategy
    micro: MicroBatch
    module: nn.Module = field(init=False)
    token_loss: Any = field(init=False)

    def load(self, world: World) -> None:
        config, ledger = self.config, self.ledger
        with ledger.during("build"), nullcontext() if methods.needs_weights(config.method) else with_memory():
            self.token_loss, content = build(config, world, build_base, load_base)
        with ledger.during("built"):
            let_go(self.token_loss, "cpu" if content is None else "meta")  # what is filled may be filled with all
        depth.mark_layers(self.token_loss, ledger)  # before FSDP makes other classes of them
        with ledger.during("setup"):
            lr_ratio = partial(methods.lr_ratio, config.method)
            self.module = self.strategy.setup(
                self.token_loss, content, lambda m: make_optimizer(m, config.optim, lr_ratio)
            )
        del content
        settle(self.token_loss)
        ledger.label(weights_of(self.token_loss), "weights")

    def make_optimizer_state(self) -> None:
        """What an optimizer keeps it makes in its first step; gradients of zero are as good for that as any."""
        kept = []
        for parameter in self.token_loss.parameters():
            if parameter.requires_grad:
                kept.append((parameter, parameter.grad))
                parameter.grad = torch.zeros_like(parameter)
        self.strategy.step(self.config.optim.lr, usable=True)
        for parameter, before in kept:
            parameter.grad = before
        self.ledger.label(optimizer_of(self.strategy), "optimizer")

    def step(self, passes: int) -> None:
        """An optimizer step of so many micro-batches."""
        ledger = self.ledger
        for number in range(passes):
            self.strategy.sync_gradients(number == passes - 1)
            with ledger.during(f"forward {number}", "before"):
                share = self.module(self.micro) / 1
            with ledger.during(f"backward {number}", "after"):
                self.strategy.backward(share)
            ledger.label(gradients_of(self.token_loss), "gradients")
        with ledger.during("step"):
            self.strategy.step(self.config.optim.lr, usable=True)

    def save(self) -> None:
        model = self.token_loss.model
        with self.ledger.during("save"):
            for _ in self.strategy.gather(dict(methods.saved_tensors(model, self.config.method))):
                pass


def micro_batches_of(config: RunConfig, world_size: int) -> int:
    """Forward passes of a rank in an optimizer step."""
    optim = config.optim
    return max(1, -(-optim.global_batch_size // (optim.micro_batch_size * world_size)))


def full_micro_batch(seq_len: int, sequences: int) -> MicroBatch:
    """Sequences of one document each, every token but the first a target."""
    tokens = seq_len * sequences
    positions = torch.arange(seq_len).repeat(sequences)
    supervised = torch.nonzero(positions < seq_len - 1).flatten()
    return MicroBatch(
        input_ids=torch.ones(1, tokens, dtype=torch.int64),
        position_ids=positions[None],
        cu_seqlens=(torch.arange(sequences + 1) * seq_len).to(torch.int32),
        max_seqlen=seq_len,
        supervised=supervised,
        targets=torch.ones(len(supervised), dtype=torch.int64),
    )


def weights_of(token_loss: nn.Module) -> Iterator[Tensor]:
    """What a rank holds of parameters and buffers, and the scales of quantised ones."""
    yield from (local(p.detach()) for p in token_loss.parameters())
    yield from token_loss.buffers()
    for module in token_loss.modules():
        yield from _tensors(getattr(module, "quant_state", None))
        yield from _tensors(getattr(module, "state", None))


def gradients_of(token_loss: nn.Module) -> Iterator[Tensor]:
    return (local(p.grad) for p in token_loss.parameters() if p.grad is not None)


def optimizer_of(strategy: Any) -> Iterator[Tensor]:
    for state in strategy.optimizer.state.values():
        yield from (local(value) for value in state.values() if isinstance(value, Tensor))


def _tensors(holder: object, depth: int = 2) -> Iterator[Tensor]:
    """The tensors that bitsandbytes keeps in an object beside the weight (scales of scales: one deeper)."""
    if holder is None or depth == 0 or not type(holder).__module__.startswith("bitsandbytes"):
        return
    for value in vars(holder).values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _tensors(value, depth - 1)


def _figures(config: RunConfig, ledger: Ledger) -> Figures:
    """The ledger's peaks: `train/…` for each segment of training, and one for loading, saving and each use of host
    memory."""
    offloaded = isinstance(config.strategy, FsdpStrategy) and config.strategy.cpu_offload

    def on_device(block: Block) -> bool:
        return not (offloaded and block.kind in _OFFLOADED)

    def in_setup(block: Block) -> bool:  # what was built in host memory, and did not stay, was not on the device
        return on_device(block) and (block.phase not in ("build", "built") or block.kind != "loading")

    found: Figures = {}
    for (phase, segment), parts in ledger.peaks(on_device).items():
        if phase.split()[0] in _TRAINING:
            found[f"train/{phase}/{segment}"] = parts
        elif phase == "save":
            found["saving"] = parts
    found["loading"] = ledger.peaks(in_setup)["setup", ""]
    found["host/loading"] = max(ledger.peaks()["build", ""], ledger.peaks()["built", ""], key=lambda p: sum(p.values()))
    host = {kind: size for kind, size in ledger.peaks()["step", ""].items() if offloaded and kind in _OFFLOADED}
    found["host/training"] = host
    state = sum(block.size for block in ledger.blocks if block.died is None and block.kind == "optimizer")
    found["host/saving"] = {"optimizer": state if config.checkpoint.in_background else 0}
    return found


def _memory(found: Figures, layers: tuple[int, ...] = ()) -> Memory:
    name, fullest = max(
        ((name, parts) for name, parts in found.items() if name.startswith("train/")),
        key=lambda moment: sum(moment[1].values()),
    )
    parts = {kind: fullest.get(kind, 0) for kind in KINDS}
    parts["activations"] += sum(fullest.values()) - sum(parts.values())  # small things that loading left
    return Memory(
        parts=parts,
        moment=name.split("/")[1].split()[0],
        loading=sum(found["loading"].values()),
        saving=sum(found["saving"].values()),
        host={name.removeprefix("host/"): sum(p.values()) for name, p in found.items() if name.startswith("host/")},
        trained=found["parameters"]["trained"],
        parameters=found["parameters"]["all"],
        layers=layers,
    )
