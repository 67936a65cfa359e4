"""How a run is judged: the section `evaluation` of run.yaml. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field

from distributed_ft.config.section import Positive, Section
from distributed_ft.config.tasks import AnyTask, SuiteEntry, TaskConfig

AUTO_SHOTS = (1, 2, 4, 8)  # evaluation.few_shot: auto


class SelectConfig(Section):
    metric: Literal["task_accuracy"] = "task_accuracy"
    forgetting_budget: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="Largest mean drop on the general suite that BEST may have."
    )


class EarlyStopConfig(Section):
    """When `dft eval --watch` tells the training that more steps will not help."""

    patience: Positive = Field(
        3, description="Checkpoints in a row that are no better than the best before, or over the forgetting budget."
    )
    min_delta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Gain in task accuracy up to which a checkpoint is no better."
    )


class LocalEngineConfig(Section):
    """The base is loaded here, by transformers."""

    type: Literal["transformers"] = "transformers"


class EndpointEngineConfig(Section):
    """An OpenAI-compatible server that holds the base, and the checkpoints' adapters under names of their own."""

    type: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://", description="Of the API, for example http://localhost:8000/v1.")
    model: str = Field(min_length=1, description="The server's name of the base.")
    checkpoint_model: str = Field(
        "{run}-{step}", description="The server's name of a checkpoint, from {run}, {step} (500) and {name}."
    )
    api_key_env: str | None = Field(None, description="Variable of the environment that holds the key.")
    concurrency: Positive = Field(8, description="Requests under way at a time.")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="Seconds of silence before it is asked again.")


EngineConfig = Annotated[LocalEngineConfig | EndpointEngineConfig, Field(discriminator="type")]
Key = tuple[str | int, ...]


class EvaluationConfig(Section):
    tasks: tuple[AnyTask, ...] = Field((), description="What the model is being trained for.")
    general: tuple[SuiteEntry, ...] = Field(
        ("shipped",),
        description="What it must not forget: `shipped` (general skills), paths of rows (scored by exact match), names "
        "of lm-evaluation-harness tasks, or tasks as above.",
    )
    generic_text: str | None = Field(
        "shipped",
        min_length=1,
        description="Held-out text on which the divergence from the base is measured: `shipped`, a path of rows, or "
        "null for none.",
    )
    few_shot: Annotated[int, Field(ge=0)] | Literal["auto"] | tuple[Positive, ...] = Field(
        4,
        description="Examples shown to the base model for comparison: how many; or a list of numbers to try, auto for "
        "[1, 2, 4, 8], of which the best on the tasks' validation rows is taken.",
    )
    batch_size: Positive = Field(32, description="Requests answered at once.")
    batch_tokens: Annotated[int, Field(ge=0)] = Field(
        4096, description="More of them are answered at once while they have at most so many tokens, answers included."
    )
    engine: EngineConfig = LocalEngineConfig()
    validation_every: Positive | None = Field(
        None, description="Steps between validation losses; default: at each checkpoint."
    )
    allow_code_execution: bool = Field(
        False, description="Metric pass_at_k may run what the model wrote, in a sandbox on this machine."
    )
    select: SelectConfig = SelectConfig()
    adapter_strength: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="Strengths at which the selected checkpoint's adapter is scored too, e.g. [0.25, 0.5, 0.75]: less "
        "of it may forget less. Of LoRA and QLoRA, but not of DoRA.",
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="End the training when it does not help any more; needs `dft eval --watch` beside it."
    )

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers of examples to try, ascending; one is not a choice."""
        if isinstance(self.few_shot, tuple):
            return tuple(sorted(set(self.few_shot)))
        return AUTO_SHOTS if self.few_shot == "auto" else (self.few_shot,)

    @property
    def entries(self) -> list[tuple[Key, TaskConfig]]:
        """Every task that is written out, by its key; the suites are among them."""
        named = [("tasks", self.tasks), ("general", self.general)]
        return [
            (("evaluation", name, index), entry)
            for name, listed in named
            for index, entry in enumerate(listed)
            if isinstance(entry, TaskConfig)
        ]
