"""How long a step takes, by a model of its parts: an estimate, not a measurement.

compute: FLOPs of the tokens (`train.flops`; recomputation adds the layers' forward pass again) at the share of the
peak that the table of GPUs assumes. weights: 4-bit weights are unpacked in every pass, and the optimizer reads and
writes what it keeps, both at the memory's bandwidth. communication: bytes that a rank sends, by ring algorithms
((n-1)/n of the tensor; Thakur et al. 2005), at the slowest link on the way. Of the shorter one of computing and
communicating, all but `EXPOSED` is hidden behind the other.
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from distributed_ft.config.schema import FsdpStrategy, QloraMethod, RunConfig
from distributed_ft.model.load import DTYPES
from distributed_ft.plan.gpus import Cluster
from distributed_ft.plan.measure import Memory, micro_batches_of
from distributed_ft.train.flops import flops_per_token, recomputed_flops_per_token

EXPOSED = 0.15  # share of the shorter part that is not hidden: the first gather, the last reduction
_RECOMPUTED = {"none": 0.0, "selective": 0.5, "full": 1.0}  # share of the layers
_SENT = 4  # bytes of a gradient that is reduced: fp32
_PACKED = {"nf4": 0.53, "int8": 1.0}  # bytes of a quantised weight, with its scales
_UPDATED = {"adamw": 28, "adamw_8bit": 16, "paged_adamw_8bit": 16, "sgd": 20}  # bytes read and written a parameter
_ON_HOST = 20e9  # bytes/s that an optimizer on CPUs works through (`cpu_offload`)
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimizer step, by what they are spent on, and tokens (of the global batch, padding none)."""

    compute: float
    weights: float
    communication: float
    tokens: int

    @property
    def step(self) -> float:
        """Seconds of a step."""
        busy = self.compute + self.weights
        return max(busy, self.communication) + EXPOSED * min(busy, self.communication)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.step


def speed(config: RunConfig, memory: Memory, cluster: Cluster, architecture: PretrainedConfig) -> Speed:
    """What a step of this run takes on a cluster."""
    gpu, optim = cluster.gpu, config.optim
    tokens = optim.global_batch_size * config.data.seq_len
    flops = flops_per_token(architecture, memory.parameters, memory.trained, config.data.seq_len)
    flops += recomputed_flops_per_token(
        architecture,
        memory.parameters - (memory.trained if memory.trained < memory.parameters else 0),
        config.data.seq_len,
        _RECOMPUTED[config.model.gradient_checkpointing],
        all_trained=config.method.type == "full",
    )
    passes = micro_batches_of(config, cluster.size)
    held = memory.trained / (_shards(config, cluster) if isinstance(config.strategy, FsdpStrategy) else 1)
    update = held * _UPDATED[optim.name] / (gpu.bandwidth * GIGA)
    offloaded = isinstance(config.strategy, FsdpStrategy) and config.strategy.cpu_offload
    if offloaded:
        update = held * _UPDATED[optim.name] / _ON_HOST
    return Speed(
        compute=flops * tokens / cluster.size / (gpu.bf16 * TERA * gpu.achieved),
        weights=update + passes * _unpacking(config, memory) / (gpu.bandwidth * GIGA),
        communication=_communication(config, memory, cluster, passes),
        tokens=tokens,
    )


def _unpacking(config: RunConfig, memory: Memory) -> float:
    """Bytes of memory traffic of a pass to unpack the weights: read packed, written and read in the compute dtype."""
    if not isinstance(config.method, QloraMethod):
        return 0.0
    times = 2 + _RECOMPUTED[config.model.gradient_checkpointing]
    return times * memory.parameters * (_PACKED[config.method.quantization] + 2 * DTYPES[config.model.dtype].itemsize)


def _shards(config: RunConfig, cluster: Cluster) -> int:
    """Ranks that share one copy of the model."""
    strategy = config.strategy
    assert isinstance(strategy, FsdpStrategy)
    return strategy.dp_shard or cluster.size // strategy.dp_replicate


def _communication(config: RunConfig, memory: Memory, cluster: Cluster, passes: int) -> float:
    if cluster.size == 1:
        return 0.0
    strategy, gradients = config.strategy, memory.trained * _SENT
    if not isinstance(strategy, FsdpStrategy):  # one all-reduce a step
        return 2 * _ring(gradients, cluster.size, cluster)
    shards = _shards(config, cluster)
    width = float(DTYPES[config.model.dtype].itemsize)
    if isinstance(config.method, QloraMethod):
        width = _PACKED[config.method.quantization]
    gathers = 2 if strategy.reshard_after_forward else 1
    seconds = passes * (gathers * _ring(memory.parameters * width, shards, cluster) + _ring(gradients, shards, cluster))
    if strategy.dp_replicate > 1:
        rate = (cluster.gpu.network if cluster.nodes > 1 else cluster.gpu.link) * GIGA
        seconds += 2 * gradients / shards * (1 - 1 / strategy.dp_replicate) / rate
    if strategy.cpu_offload:
        seconds += passes * gathers * memory.parameters * width / shards / (cluster.gpu.host * GIGA)
    return seconds


def _ring(num_bytes: float, ranks: int, cluster: Cluster) -> float:
    """Seconds of an all-gather or reduce-scatter of a tensor of so many bytes."""
    leaving = cluster.gpu.network * cluster.per_node  # a node's GPUs send by their network cards at once
    rate = cluster.gpu.link if ranks <= cluster.per_node else min(cluster.gpu.link, leaving)
    return num_bytes * (ranks - 1) / ranks / (rate * GIGA)
