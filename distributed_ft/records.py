"""What is stored as JSON in a run directory and read back: the records that `artifacts` keeps. Torch-free."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

SCHEMA = 1  # versions every JSON file that other programs may read


class Record(BaseModel):
    """JSON that is read back: unknown keys of a later version are kept out of the way, not refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class FileEntry(Record):
    size: int  # bytes
    sha256: str


class Manifest(Record):
    """`manifest.json` of a checkpoint."""

    schema_version: int = SCHEMA
    step: int
    world_size: int
    created: str  # ISO 8601, UTC
    files: dict[str, FileEntry]  # path relative to the checkpoint -> entry


class Choice(Record):
    """One choice of an item that was scored by log-likelihood."""

    text: str
    nats: float  # its log-likelihood, natural logarithm
    tokens: int
    greedy: bool = False  # each of its tokens was the likeliest


class Sample(Record):
    """One line of `evaluation/<model>/<task>/samples.jsonl`."""

    id: str
    doc_hash: str  # sha256 of the request and the reference, so that two models' lines can be paired by content
    group: str | None = None  # the skill or category of the item
    cluster: str | None = None  # what it shares with others (a passage): items of one cluster are not independent
    request: list[dict[str, str]]  # the messages sent
    reference: str
    response: str
    score: FiniteFloat  # of the task's metric, in [0, 1]
    scores: dict[str, FiniteFloat] = {}  # further metrics of this item, e.g. field_accuracy, valid_json
    # left out where there is nothing to say
    answer: str | None = None  # what the response was taken to say: a label, a number
    draws: list[str] | None = None  # every response, where several were drawn
    choices: list[Choice] | None = None
    judgement: str | None = None  # what a judge wrote


class TaskResult(Record):
    """`evaluation/<model>/<task>/result.json`: `<model>` is base, few-shot or step-00000500."""

    schema_version: int = Field(SCHEMA, alias="schema")
    model: str
    task: str
    kind: Literal["task", "general"]
    metric: str
    score: FiniteFloat  # mean of the items' scores
    stderr: FiniteFloat  # standard error of that mean, robust to clusters
    n: int
    clusters: int | None = None  # how many the items are of; None: each stands alone
    scores: dict[str, FiniteFloat] = {}  # means of the further metrics
    scores_stderr: dict[str, FiniteFloat] = {}
    totals: dict[
        str, FiniteFloat
    ] = {}  # figures of all answers together, in any unit: macro-F1, perplexity, corpus BLEU
    groups: dict[str, FiniteFloat] = {}  # mean score by group (skill)
    groups_stderr: dict[str, FiniteFloat] = {}
    chance: float = 0.0  # expected score of a guess
    model_digest: str
    task_digest: str
    seconds: float = 0.0


class Drift(Record):
    """`evaluation/<model>/drift.json`: how far a checkpoint's predictions are from the base's on held-out text."""

    schema_version: int = Field(SCHEMA, alias="schema")
    model: str
    kl: FiniteFloat  # mean KL(base || tuned) of the next token, nats per token
    stderr: FiniteFloat
    low: FiniteFloat  # 95% interval
    high: FiniteFloat
    tokens: int
    texts: int
    model_digest: str
    text_digest: str


class Progress(Record):
    """`progress.json`: where a training is, for `dft status` and for who follows the run; written by rank 0."""

    schema_version: int = Field(SCHEMA, alias="schema")
    phase: Literal["loading", "training", "validating", "saving", "finished", "stopped", "failed"]
    step: int  # completed optimizer steps
    total_steps: int | None = None  # None while it is not known yet
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    world_size: int
    job: str | None = None  # of the batch system
    updated: str  # ISO 8601, UTC


class SweptRun(Record):
    """One combination of a sweep: `dft train RUN_YAML *overrides` trains it."""

    name: str
    overrides: tuple[str, ...]  # `name=…` among them
    run_dir: str


class Sweep(Record):
    """`runs/<name>.sweep.json`: the combinations of `dft sweep`, in the order in which they run."""

    schema_version: int = Field(SCHEMA, alias="schema")
    run_yaml: str
    settings: tuple[str, ...]  # as they were given
    runs: tuple[SweptRun, ...]
