"""The keys of `run.yaml`, as frozen pydantic models.

Nothing here changes what the user wrote; derived values are functions.

Torch-free: a login node answers at once. Units are in each field's description, which is also what editors show
(`dft schema`).
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from distributed_ft.config.evaluation import AUTO_SHOTS as AUTO_SHOTS
from distributed_ft.config.evaluation import EarlyStopConfig as EarlyStopConfig
from distributed_ft.config.evaluation import EndpointEngineConfig as EndpointEngineConfig
from distributed_ft.config.evaluation import EvaluationConfig as EvaluationConfig
from distributed_ft.config.evaluation import LocalEngineConfig as LocalEngineConfig
from distributed_ft.config.evaluation import SelectConfig as SelectConfig
from distributed_ft.config.section import ColumnName as ColumnName
from distributed_ft.config.section import DataFile as DataFile
from distributed_ft.config.section import DataFormat as DataFormat
from distributed_ft.config.section import Positive as Positive
from distributed_ft.config.section import Section as Section
from distributed_ft.config.tasks import HarnessTask as HarnessTask
from distributed_ft.config.tasks import JsonFieldsTask as JsonFieldsTask
from distributed_ft.config.tasks import TaskConfig as TaskConfig

Preset = Literal["style", "domain", "code", "support"]
Recompute = Literal["none", "selective", "full"]


class ModelConfig(Section):
    base: str = Field(
        min_length=1,
        description="A directory in Hugging Face format, a hub id, or `shipped:base`, the embedded tiny model.",
    )
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="Compute dtype of the forward and backward passes.")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex"] = Field(
        "auto",
        description="auto: the fastest implementation at hand that isolates packed documents. flex: torch's compiled "
        "flex_attention, also for models with capped scores; compiles for a minute.",
    )
    gradient_checkpointing: Recompute = Field(
        "none",
        description="full: recompute every decoder layer in the backward pass; least memory, about 30% more time. "
        "selective: every second layer; half of the saving for half of the time.",
    )


class FullMethod(Section):
    """Every weight is trained."""

    type: Literal["full"]


class LowRank(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) * B A, the base frozen."""

    rank: Positive = Field(16, description="Inner dimension of the update.")
    alpha: Annotated[float, Field(gt=0)] = Field(32, description="The update is scaled by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    target_modules: Literal["all-linear", "attention"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear",
        description="all-linear (every linear layer but the output head), attention (those in it), or module names.",
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank): a high rank then learns more (Kalajdzievski 2023)."
    )
    dora: bool = Field(
        False,
        description="Train each row's magnitude beside its direction (Liu et al. 2024, arXiv:2402.09353); slower, and "
        "nearer to full fine-tuning.",
    )
    init: Literal["default", "pissa"] = Field(
        "default",
        description="Start of the adapters. default: B is zero. pissa: the base's principal singular vectors, taken "
        "out of the base (Meng et al. 2024, arXiv:2404.02948); saved for the base as it was, at twice the rank.",
    )
    lora_plus: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="Learning rate of B as a multiple of that of A, often 16 (Hayou et al. 2024, arXiv:2402.12354).",
    )
    neftune_alpha: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Noise on the input embeddings while training, uniform in +-alpha / sqrt(tokens of the document x "
        "width), often 5 (Jain et al. 2023, arXiv:2310.05914).",
    )


class LoraMethod(LowRank):
    """Low-rank adapters over a base in the compute dtype."""

    type: Literal["lora"] = "lora"


class QloraMethod(LowRank):
    """Low-rank adapters over a quantised base (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes."""

    type: Literal["qlora"]
    quantization: Literal["nf4", "int8"] = Field(
        "nf4",
        description="nf4: 4-bit NormalFloat, half a byte a weight. int8: a byte a weight, nearer to the base "
        "(Dettmers et al. 2022, arXiv:2208.07339); on one process and ddp.",
    )
    double_quant: bool = Field(True, description="Quantise the scales of nf4 as well; 0.4 bits a weight less.")


class VirtualTokens(Section):
    """Vectors in front of every document are trained, the base is frozen."""

    num_virtual_tokens: Positive = Field(20, description="How many; the context has so many tokens less.")


class PrefixMethod(VirtualTokens):
    """Keys and values of every layer's attention (Li & Liang 2021, arXiv:2101.00190)."""

    type: Literal["prefix"]


class PromptMethod(VirtualTokens):
    """Input embeddings (Lester et al. 2021, arXiv:2104.08691)."""

    type: Literal["prompt"]


class AdapterMethod(Section):
    """Bottleneck adapters: x + up(f(down(x))) on the output of a layer's parts, the base frozen."""

    type: Literal["adapter"]
    adapter: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer",
        description="pfeiffer: after the MLP (Pfeiffer et al. 2020, arXiv:2005.00247). houlsby: after attention too "
        "(Houlsby et al. 2019, arXiv:1902.00751).",
    )
    reduction_factor: Positive = Field(16, description="Width of the base's layers / width of the bottleneck.")


MethodConfig = Annotated[
    FullMethod | LoraMethod | QloraMethod | PrefixMethod | PromptMethod | AdapterMethod, Field(discriminator="type")
]


# What an audit may find; a suffix may refine an id. A contract.
FINDING_IDS = (
    "duplicate.exact",
    "duplicate.near",
    "contamination",
    "format.drift",
    "format.schema",
    "answer.empty",
    "answer.short",
    "answer.truncated",
    "answer.placeholder",
    "encoding",
    "language",
    "conflict",
    "imbalance",
    "pii",
    "secret",
    "size",
    "fairness",
    "template",
)
OverLong = Literal["truncate", "split", "drop", "error"]


class Source(DataFile):
    """What is trained on, and its share."""

    weight: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Share of the rows of an epoch that come from this file; all files have one, or none has. An epoch "
        "ends when the first file has been seen once; the others go on from there in the next epoch.",
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Of the rows of an epoch, so many come from this file; the files without one are seen whole. "
        "General data at 0.1 to 0.2 is replay against forgetting.",
    )


class AuditConfig(Section):
    """What the audit of the data looks for, and from where on it complains."""

    kind: Literal["style", "domain", "new_task", "behaviour"] | None = Field(
        None,
        description="What is to be learned; fewer examples than it needs are reported: style 100, domain 1,000, "
        "new_task 5,000, behaviour 500.",
    )
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Jaccard similarity of two rows' word 3-grams from which on they are near-duplicates."
    )
    ngram: Annotated[int, Field(ge=2)] = Field(8, description="Words of the n-grams that contamination is told by.")
    overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of an evaluation item's n-grams found in training data from which on it counts as seen."
    )
    sensitive: str | None = Field(
        None, description="A column (region, gender, …): how answers differ between its groups is reported."
    )
    json_schema: str | None = Field(None, alias="schema", description="JSON Schema file that all answers must satisfy.")


class DataConfig(Section):
    train: str | tuple[str | Source, ...] = Field(
        min_length=1, description="Training data: a path, or a list of paths or {path, weight}."
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | DataFile | None = Field(
        None,
        description="A path, a {path, format, columns, split}, or the fraction of the training rows to hold out (by "
        "content hash).",
    )
    seq_len: Annotated[int, Field(ge=8)] = Field(2048, description="Tokens in a sequence (a pack of documents).")
    packing: bool = Field(True, description="Fill each sequence with several documents, isolated from one another.")
    over_long: OverLong = Field(
        "truncate",
        description="What to do with a row of more than seq_len tokens (split: into several documents); counted in "
        "data/report.json.",
    )
    supervise: Literal["all", "last"] = Field("all", description="Which assistant turns of a conversation are learned.")
    skip_bad: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Go on over so many rows that cannot be read; they are counted, and kept in data/quarantine.jsonl.",
    )
    waive: tuple[str, ...] = Field(
        (), description="Ids of audit findings that shall not stop the run, e.g. contamination; the report says so."
    )
    audit: AuditConfig = AuditConfig()

    @property
    def sources(self) -> list[Source]:
        """`train`, each entry in its long form."""
        entries = (self.train,) if isinstance(self.train, str) else self.train
        return [Source(path=entry) if isinstance(entry, str) else entry for entry in entries]

    @property
    def validation_file(self) -> DataFile | None:
        """`validation` in its long form; None: no rows of their own."""
        named = self.validation
        return DataFile(path=named) if isinstance(named, str) else named if isinstance(named, DataFile) else None


class DdpStrategy(Section):
    """Every process holds the whole model; gradients are summed (torch DistributedDataParallel)."""

    type: Literal["ddp"] = "ddp"


class FsdpStrategy(Section):
    """Parameters, gradients and optimizer state are sharded (torch FSDP2, `fully_shard`)."""

    type: Literal["fsdp"]
    dp_shard: Positive | None = Field(
        None, description="Processes that share one copy of the model; default: all of them / dp_replicate."
    )
    dp_replicate: Positive = Field(1, description="Copies of the sharded model (hybrid sharding across nodes).")
    cpu_offload: bool = Field(False, description="Keep shards in host memory between uses.")
    reshard_after_forward: bool = Field(True, description="Free gathered weights after each layer's forward pass.")


class DeepspeedStrategy(Section):
    """ZeRO: optimizer state, gradients and, in stage 3, parameters are partitioned (DeepSpeed)."""

    type: Literal["deepspeed"]
    config: str = Field(
        min_length=1,
        description="A JSON file of engine knobs, e.g. configs/deepspeed/zero3.json; relative to run.yaml.",
    )


class LauncherStrategy(Section):
    """What the file of `accelerate launch` says: see `distributed_ft.config.launched`."""

    type: Literal["launcher"]


# What a process trains by; `launcher` becomes one of them when it starts.
SettledStrategy = DdpStrategy | FsdpStrategy | DeepspeedStrategy
StrategyConfig = Annotated[SettledStrategy | LauncherStrategy, Field(discriminator="type")]


class OptimConfig(Section):
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "sgd"] = Field(
        "adamw",
        description="AdamW (fused), with moments in 8 bits (bitsandbytes), these also paged out to host memory when "
        "the GPU's is short, or SGD with Nesterov momentum.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(1e-4, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="wsd: constant, then linearly down over the last decay_ratio of the run."
    )
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="Share of the run that wsd decays over.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Warm-up as a share of all steps.")
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="Warm-up in steps; beats warmup_ratio.")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Final rate as a share of lr.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Decoupled weight decay; never on norms, biases and other one-dimensional parameters."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Of sgd.")
    eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(1.0, description="Global gradient norm; null: no clip.")
    epochs: Annotated[float, Field(gt=0)] = Field(2, description="Passes over the training data.")
    max_steps: Positive | None = Field(None, description="Optimizer steps; beats epochs.")
    global_batch_size: Positive = Field(
        16, description="Sequences of seq_len in an optimizer step, over all processes."
    )
    micro_batch_size: Positive = Field(4, description="Sequences of seq_len in one forward pass of one process.")
    max_skipped_steps: Positive = Field(
        5, description="Stop after so many steps in a row whose loss or gradient was not finite (each is skipped)."
    )


class CheckpointConfig(Section):
    every: Positive = Field(500, description="Optimizer steps between checkpoints; the last step always has one.")
    keep: Positive = Field(3, description="Newest checkpoints kept, besides BEST.")
    in_background: bool = Field(
        True,
        alias="async",
        description="Write state/ and publish while training goes on; costs host memory for a copy of that state.",
    )


class RunConfig(Section):
    """One run: what is trained, on what, how, and how it is judged."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The run directory is runs_dir/name.")
    runs_dir: str = Field("runs", description="Relative to the working directory.")
    preset: Preset | None = Field(None, description="Values by kind of task; your own keys win.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelConfig
    method: MethodConfig = LoraMethod()
    data: DataConfig
    strategy: StrategyConfig = DdpStrategy()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run.yaml, from which editors complete and check it."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **RunConfig.model_json_schema(), "title": "distributed_ft run.yaml"}
