"""Putting a run together: from a run directory and a world to everything that `fit` needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config import compat
from distributed_ft.config.load import leaves
from distributed_ft.config.schema import LowRank, ModelConfig, RunConfig
from distributed_ft.data.order import Order
from distributed_ft.data.store import PreparedData, TokenStore
from distributed_ft.errors import CheckpointError, ConfigError, FtError
from distributed_ft.model import methods
from distributed_ft.model.isolation import check_isolation
from distributed_ft.model.load import DTYPES, build_model, load_model, load_tokenizer
from distributed_ft.model.methods import pissa
from distributed_ft.model.quantized import quantization, rounds_together
from distributed_ft.model.shapes import num_parameters
from distributed_ft.model.token_loss import TokenLoss
from distributed_ft.model.weights import Weights
from distributed_ft.parallel.strategy import Strategy, make_strategy
from distributed_ft.parallel.world import World
from distributed_ft.publishing import tidy
from distributed_ft.train import checkpoint, environment, flops, preflight
from distributed_ft.train.checkpoint import Saving, TrainState
from distributed_ft.train.clock import StepClock
from distributed_ft.train.early_stop import EarlyStop
from distributed_ft.train.metrics import Metrics
from distributed_ft.train.optim import make_optimizer
from distributed_ft.train.signals import StopRequest
from distributed_ft.train.trackers import open_trackers
from distributed_ft.train.whereabouts import Whereabouts

LoadBase = Callable[[ModelConfig, torch.dtype, torch.device, BitsAndBytesConfig | None], PreTrainedModel]
BuildBase = Callable[
    [ModelConfig, torch.dtype, torch.device, BitsAndBytesConfig | None], tuple[PreTrainedModel, Weights | None]
]


@dataclass
class Run:
    """A run on this rank, ready to train. `metrics` is None on all ranks but 0."""

    config: RunConfig
    directory: RunDirectory
    world: World
    order: Order
    validation: TokenStore | None
    token_loss: TokenLoss  # the module as built; its `.model` names the parameters
    model: Callable[..., Tensor]  # the module to call: `token_loss`, wrapped by the strategy
    strategy: Strategy
    total_steps: int
    state: TrainState
    stop: StopRequest
    where: Whereabouts
    metrics: Metrics | None = None
    clock: StepClock = field(default_factory=StepClock)
    last_saved: int = 0  # step of the newest checkpoint, counting one that is on its way
    saving: Saving | None = None  # the checkpoint that is on its way
    early_stop: EarlyStop | None = None  # on rank 0, of a run that heeds it

    def __post_init__(self) -> None:
        self.last_saved = self.state.step

    @property
    def checkpoint_written(self) -> bool:
        """Whether there is a checkpoint on its way that is done with, on this rank."""
        return self.saving is not None and self.saving.done

    @property
    def enough(self) -> str | None:
        """Why more steps do not help, as the eval driver says; None on all ranks but 0."""
        return None if self.early_stop is None else self.early_stop.reason(self.state.step)


def open_run(
    config: RunConfig,
    directory: RunDirectory,
    data: PreparedData,
    world: World,
    stop: StopRequest,
    where: Whereabouts | None = None,
) -> Run:
    """Load, adapt, shard; resume from the newest complete checkpoint if there is one. A collective.

    Raises:
        ConfigError: the model cannot be loaded, is not the one that the run began with, or lets packed documents see
            one another; the mesh does not fit, or the device lacks what is asked for.
        CheckpointError: there are checkpoints and none is complete.
    """
    problems = compat.device_problems(config, "cuda" if world.device.type == "cuda" else "cpu")
    if problems:
        raise ConfigError("\n".join(problems))
    resumed = world.from_main(_open_directory(directory, config) if world.is_main else None)
    if isinstance(resumed, Exception):
        raise resumed
    order = Order.of(config, data)
    token_loss, content = build(config, world)
    if methods.starts_from_base(config.method):
        _begin_from_base(token_loss.model, directory, world, fresh=resumed is None)
    strategy = make_strategy(config, world)
    lr_ratio = partial(methods.lr_ratio, config.method)
    module = strategy.setup(token_loss, content, lambda m: make_optimizer(m, config.optim, lr_ratio))
    check_isolation(token_loss, module, config.model, world.device, coarse=rounds_together(config.method))
    checkpoint.seed_rank(config.seed, 0, world)
    state = TrainState()
    if resumed is not None:
        found = next(c for c in directory.all_checkpoints() if c.step == resumed)
        state = checkpoint.load(found, strategy, world, config.seed)
    run = Run(
        config,
        directory,
        world,
        order,
        data.validation,
        token_loss,
        module,
        strategy,
        order.total_steps,
        state,
        stop,
        where or Whereabouts(directory, world),
    )
    environment.record(directory, config, world, *num_parameters(token_loss))
    if world.is_main:
        run.metrics = _open_metrics(run)
        run.early_stop = EarlyStop(directory) if config.evaluation.early_stop is not None else None
    return run


def build(
    config: RunConfig, world: World, build_base: BuildBase = build_model, load_base: LoadBase = load_model
) -> tuple[TokenLoss, Weights | None]:
    """The model with its method applied and the loss around it, the same on every rank, on the CPU or without memory:
    then with what it is to be filled with. `build_base`, `load_base`: where the base comes from, if not from files."""
    compute = DTYPES[config.model.dtype]
    storage, bits = methods.storage_dtype(config.method, compute), quantization(config.method, compute)
    if methods.needs_weights(config.method):
        model, content = load_base(config.model, storage, world.device, bits), None
    else:
        model, content = build_base(config.model, storage, world.device, bits)
    torch.manual_seed(config.seed)  # adapters start the same everywhere
    adapted = methods.apply(model, config.method)
    noise = config.method.neftune_alpha if isinstance(config.method, LowRank) else None
    return TokenLoss(adapted, compute if compute is torch.bfloat16 else None, noise), content


def _begin_from_base(model: nn.Module, directory: RunDirectory, world: World, fresh: bool) -> None:
    """Put adapters that start from the base's weights where this run's began: rank 0 finds that out once."""
    start, problem = directory.adapter_start, None
    if world.is_main and not start.exists():
        try:
            if not fresh:
                raise CheckpointError(f"{start}: missing; the checkpoints of this run need it, so restore it")
            pissa.write_start(model, start, world.device)
        except (FtError, OSError) as error:
            problem = error
    world.agree(problem)
    pissa.begin(model, start)


def _open_directory(directory: RunDirectory, config: RunConfig) -> int | Exception | None:
    """Step to resume from; the base must be the one that the run began with. Rank 0 only, which holds the lock."""
    try:
        preflight.record_base(directory, config.model.base)
        newest = directory.newest_complete()
        tidy(directory, newest)
    except (FtError, OSError) as error:
        return error
    return None if newest is None else newest.step


def _open_metrics(run: Run) -> Metrics:
    config, start = run.config, run.state.step
    trackers = open_trackers(config, run.directory, start + 1)
    metrics = Metrics(run.directory, trackers, start, run.total_steps, run.state.validation_owed)
    trainable, total = num_parameters(run.token_loss)
    if run.world.device.type == "cuda":
        base_config = run.token_loss.model.config
        metrics.flops_per_token = flops.flops_per_token(base_config, total, trainable, config.data.seq_len)
        peak = flops.peak_flops(torch.cuda.get_device_name(run.world.device))
        metrics.peak_flops = peak * run.world.size if peak is not None else None
    metrics.say(
        f"{config.method.type}: {trainable:,} of {total:,} parameters are trained ({trainable / total:.2%}); "
        f"{config.strategy.type} on {run.world.size} x {run.world.device.type}"
    )
    if start >= run.total_steps and not run.state.validation_owed:
        metrics.say(f"nothing left to do: all {run.total_steps} steps are done")
    elif start > 0:
        metrics.say(f"resuming after step {start} of {run.total_steps}")
    if start == 0:
        metrics.settings(
            {
                "world_size": run.world.size,
                "trainable_parameters": trainable,
                **dict(leaves(config.model_dump(mode="json"))),
            }
        )
        metrics.text(0, "samples/train", _sample_text(run))
    return metrics


def _sample_text(run: Run) -> str:
    """Three rows as the model sees them: what is supervised stands in bold."""
    tokenizer = load_tokenizer(run.config.model.base)
    rows = []
    store = run.order.prepared.train[0]
    for index in range(min(3, len(store))):
        tokens, supervised = store.example(index)
        prompt = tokenizer.decode([t for t, s in zip(tokens, supervised, strict=True) if not s])
        answer = tokenizer.decode([t for t, s in zip(tokens, supervised, strict=True) if s])
        rows.append(f"row `{store.id(index)}`\n\n```\n{prompt}\n```\nsupervised:\n```\n{answer}\n```\n")
    return "\n".join(rows)
