"""The plan of a run: does it fit, how fast is it, what does it cost."""

import time
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from distributed_ft.config import compat
from distributed_ft.config.load import LoadedRun
from distributed_ft.config.schema import DeepspeedStrategy, LauncherStrategy, QloraMethod, RunConfig
from distributed_ft.data.order import Order
from distributed_ft.data.prepare import prepare
from distributed_ft.errors import ConfigError, FtError
from distributed_ft.model.load import load_tokenizer, quiet_libraries
from distributed_ft.plan import gpus
from distributed_ft.plan.base import Architecture, architecture, architecture_of
from distributed_ft.plan.gpus import Cluster
from distributed_ft.plan.measure import Memory, measure
from distributed_ft.plan.proposals import Proposal, proposals
from distributed_ft.plan.speed import Speed, speed
from distributed_ft.train.preflight import cache_of

_ZERO = (
    "strategy.type: deepspeed: not planned: DeepSpeed's engine lays tensors out by their addresses, which tensors "
    "without memory do not have. ZeRO-3 shards what FSDP shards: plan with strategy.type=fsdp in its place (and "
    "without ours: stage 1 and 2 need a whole copy of the weights besides)"
)


@dataclass(frozen=True)
class Choice:
    """A cluster, and what the run does on it."""

    cluster: Cluster
    speed: Speed
    need: float  # GiB of a GPU, with what no tensor shows
    fits: bool

    def price_of(self, tokens: int) -> float:
        """USD for so many tokens of training."""
        return tokens / self.speed.tokens_per_second / 3600 * self.cluster.size * self.cluster.gpu.price


@dataclass(frozen=True)
class Plan:
    """The answer. steps: of the run, None where nobody counted; stand_ins: what was measured in place of what was asked
    for."""

    config: RunConfig
    architecture: Architecture
    memory: Memory
    asked: Choice
    others: tuple[Choice, ...]  # the same run on as many GPUs of each other kind
    proposals: tuple[tuple[Proposal, Choice], ...]
    tried_all: bool
    steps: int | None
    prices_of: str
    stand_ins: tuple[str, ...]


def plan(loaded: LoadedRun, gpu: str, nodes: int, prices: Path | None, patience: float) -> Plan:
    """Plan a run on `nodes` nodes with GPUs such as `h100:8`. No proposal is begun after `patience` seconds.

    Raises ConfigError for a GPU that is not known, and whatever would keep the run from starting.
    """
    begin = time.monotonic()
    quiet_libraries()
    known, prices_of = gpus.table(prices)
    cluster = gpus.cluster(gpu, nodes, known)
    config = loaded.config
    _check(config, cluster.size)
    shape = architecture(config.model.base)
    form = architecture_of(str(shape.directory))
    config, stand_ins = _plannable(config, shape, form)
    memory = measure(config, cluster.size)

    def choice(config: RunConfig, memory: Memory, cluster: Cluster) -> Choice:
        need = cluster.usable(memory.peak)
        return Choice(cluster, speed(config, memory, cluster, form), need, need <= cluster.gpu.memory)

    tried, tried_all = proposals(
        config,
        memory,
        cluster.size,
        lambda changed: measure(changed, cluster.size),
        lambda found: cluster.usable(found.peak) <= cluster.gpu.memory,
        begin + patience,
    )
    others = (Cluster(kind, gpu, cluster.per_node, nodes) for kind, gpu in known.items() if kind != cluster.kind)
    asked = choice(config, memory, cluster)
    with_choice = [(p, choice(p.config, p.memory, cluster)) for p in tried]
    if asked.fits:
        with_choice = [(p, c) for p, c in with_choice if c.speed.step < asked.speed.step]
    return Plan(
        config=loaded.config,
        architecture=shape,
        memory=memory,
        asked=asked,
        others=tuple(choice(config, memory, other) for other in others),
        proposals=tuple(sorted(with_choice, key=lambda p: (not p[1].fits, p[1].speed.step))),
        tried_all=tried_all,
        steps=_steps(loaded.config),
        prices_of=prices_of,
        stand_ins=stand_ins,
    )


def _check(config: RunConfig, world_size: int) -> None:
    if isinstance(config.strategy, DeepspeedStrategy):
        raise ConfigError(_ZERO)
    if isinstance(config.strategy, LauncherStrategy):
        raise ConfigError(
            "strategy.type: launcher: is known when accelerate starts; plan with strategy.type=fsdp or ddp"
        )
    if isinstance(config.method, QloraMethod) and config.method.dora:
        raise ConfigError(
            "method.dora: not planned over a quantised base: DoRA unpacks the weights to measure them, and these have "
            "no data; plan with method.dora=false"
        )
    problems = compat.world_problems(config, world_size) + compat.missing_packages(config)
    problems = [p for p in problems if not p.startswith("model.attention")]
    if problems:
        raise ConfigError("\n".join(problems))


def _plannable(config: RunConfig, shape: Architecture, form: PretrainedConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """The config that is measured, and what in it is not the user's."""
    notes = []
    model = config.model.model_copy(update={"base": str(shape.directory)})
    if model.attention in ("flash_attention_2", "flex"):
        notes.append(f"attention {model.attention} is measured as sdpa, which keeps as much")
        model = model.model_copy(update={"attention": "sdpa"})
    optim = config.optim
    if optim.name == "paged_adamw_8bit":
        notes.append("moments of paged_adamw_8bit are counted as if they stayed on the GPU")
        optim = optim.model_copy(update={"name": "adamw_8bit"})
    if config.model.dtype == "fp32":
        notes.append("fp32 is timed as bf16 is: it will be several times slower than this")
    if optim.name == "sgd" and config.method.type == "full":
        notes.append("sgd may take 4 bytes a parameter more for a moment on a GPU (torch updates all at once there)")
    if any(hasattr(form.get_text_config(), key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        notes.append("time is that of all experts: a token passes through a few, so it will be faster than this")
    return config.model_copy(update={"model": model, "optim": optim}), tuple(notes)


def _steps(config: RunConfig) -> int | None:
    """Optimizer steps of the run: as it says, or counted in its data where tokenizer and data are at hand."""
    if config.optim.max_steps is not None:
        return config.optim.max_steps
    try:
        data = prepare(config, load_tokenizer(config.model.base), cache_of(config))
        return Order.of(config, data).total_steps
    except (FtError, OSError):
        return None
