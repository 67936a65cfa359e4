"""What the model is judged on: the entries of `evaluation.tasks`, one class a metric. Torch-free.

A task is flat in YAML, {name, path, metric, and the keys of that metric}, so the class is told by the key `metric`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag

from distributed_ft.config.section import DataFile, Positive, Section

DEFAULT_METRIC = "exact_match"
UNASKED = "'pass_at_k' runs what the model wrote, on this machine; allow that by evaluation.allow_code_execution: true"
URL = r"^https?://[^\s]+$"
NotNegative = Annotated[float, Field(ge=0)]
Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class TaskConfig(DataFile):
    """A held-out task: requests and reference answers, and how an answer is scored."""

    unanswered: ClassVar[bool] = False  # rows may lack the reference answer, as nothing is compared with it

    path: str = Field(min_length=1, description="Rows as in data.train; the last assistant turn is the reference.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    metric: str = Field(description="How an answer is scored; it brings keys of its own (docs/evaluation.md).")
    cluster: str | None = Field(
        None,
        min_length=1,
        description="A column (passage, document, conversation): rows with the same value in it are not independent, "
        "and standard errors, intervals and tests count them as one.",
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | DataFile | None = Field(
        None,
        description="Rows to choose by (BEST, few_shot, early_stop), so that those of `path` are asked only once, of "
        "what was chosen: a path of rows like them, a {path, format, columns, split}, or a fraction of them.",
    )

    @property
    def on_validation(self) -> Self | None:
        """The same task over its file of validation rows; None: it has none."""
        named = self.validation
        if isinstance(named, str):
            return self.model_copy(update={"path": named, "split": None})
        if isinstance(named, DataFile):
            return self.model_copy(update={key: getattr(named, key) for key in DataFile.model_fields})
        return None

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Further columns of the rows that the metric looks into: the values of all keys that end in `_column`."""
        named = (getattr(self, name) for name in type(self).model_fields if name.endswith("_column"))
        return tuple(column for column in named if column is not None)


class WrittenTask(TaskConfig):
    """The model writes its answer."""

    max_new_tokens: Positive = Field(128, description="Longest answer, in tokens.")


class ReferencesTask(WrittenTask):
    """There may be several right answers."""

    references_column: str | None = Field(
        None, description="A column with a list of further answers that are right; the best of them counts."
    )


class ExactMatchTask(WrittenTask):
    """The answer is the reference, white space at both ends aside."""

    metric: Literal["exact_match"] = "exact_match"


class NormalizedMatchTask(ReferencesTask):
    """The answer is the reference when both are normalised as SQuAD does (Rajpurkar et al. 2016, arXiv:1606.05250)."""

    metric: Literal["normalized_match"]
    ignore_case: bool = True
    ignore_punctuation: bool = True
    ignore_articles: bool = Field(True, description="The English ones: a, an, the.")


class TokenF1Task(ReferencesTask):
    """F1 of the words that answer and reference share, normalised as SQuAD does (arXiv:1606.05250)."""

    metric: Literal["token_f1"]


class NumericTask(WrittenTask):
    """The last number of the answer is that of the reference."""

    metric: Literal["numeric"]
    tolerance: NotNegative = Field(0.0, description="Largest difference from the reference that is right.")
    relative_tolerance: NotNegative = Field(
        0.0, description="The same, as a share of the reference; the larger counts."
    )
    take: Literal["last", "first"] = Field("last", description="Which number of the answer counts.")
    decimal_comma: bool = Field(False, description="1.234,5 is what 1,234.5 is otherwise.")


class RegexTask(WrittenTask):
    """What a pattern finds in the answer is the reference; or the whole answer is of a pattern."""

    metric: Literal["regex"]
    pattern: str = Field(min_length=1, description="A regular expression; its first group, or all of it, is taken.")
    take: Literal["last", "first"] = Field("last", description="Which of several findings counts.")
    fullmatch: bool = Field(
        False, description="Right is an answer that the pattern matches as a whole; there is no reference."
    )
    ignore_case: bool = False


class JsonFieldsTask(WrittenTask):
    """The answer is a JSON object that equals the reference; also field by field, and whether it is valid."""

    metric: Literal["json_fields"]
    json_schema: str | None = Field(None, alias="schema", description="JSON Schema file that answers must satisfy.")


class MultipleChoiceTask(TaskConfig):
    """The likeliest of several choices is the right one; nothing is written."""

    metric: Literal["multiple_choice"]
    choices: Words | None = Field(None, description="The choices, where all rows have the same; else from the column.")
    choices_column: str | None = Field(None, description="A column with a list of choices; default: choices.")
    answer: Literal["auto", "text", "letter", "index", "number"] = Field(
        "auto",
        description="What the reference is: the text of a choice, its letter (A is the first), its index (from 0) or "
        "its number (from 1). auto: text, letter or index, where only one of them fits.",
    )
    normalize: bool = Field(
        True, description="The log-likelihood of a choice is divided by its length in bytes (acc_norm)."
    )
    letters: bool = Field(
        False, description="The question lists the choices as A. … and the letters are scored, not the texts."
    )

    @property
    def columns_read(self) -> tuple[str, ...]:
        return () if self.choices is not None else (self.choices_column or "choices",)


class ClassificationTask(WrittenTask):
    """The answer names the right label: accuracy, macro-F1, confusion matrix."""

    metric: Literal["classification"]
    labels: Words | None = Field(None, description="All labels; default: those of the rows.")
    by: Literal["text", "likelihood"] = Field(
        "text", description="text: the label that the answer names. likelihood: the likeliest label."
    )


class BleuTask(WrittenTask):
    """BLEU as sacrebleu has it (Post 2018, arXiv:1804.08771): a score a sentence, and that of the corpus."""

    metric: Literal["bleu"]
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = Field("13a", description="sacrebleu's tokenizer.")
    lowercase: bool = False


class RougeTask(WrittenTask):
    """ROUGE F1 as rouge-score has it (Lin 2004)."""

    metric: Literal["rouge"]
    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = Field(
        "rougeL", description="The one that is the score; the others are reported beside it."
    )
    stemmer: bool = Field(False, description="Porter's, for English.")
    tokenize: Literal["ascii", "words"] = Field(
        "ascii", description="ascii: rouge-score's, a-z and digits only. words: of any script."
    )


class PerplexityTask(TaskConfig):
    """Likelihood of the reference, or of rows of plain text: probability a token, perplexity a token, word, byte."""

    metric: Literal["perplexity"]


class PassAtKTask(WrittenTask):
    """Code that passes tests, in a sandbox: pass@k (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""

    unanswered: ClassVar[bool] = True

    metric: Literal["pass_at_k"]
    max_new_tokens: Positive = Field(512, description="Longest answer, in tokens.")
    k: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field((1,), description="The first is the score.")
    draws: Positive = Field(1, description="Answers drawn for each item; at least the largest k.")
    temperature: NotNegative = Field(0.0, description="Of the draws; 0: the likeliest answer, and only one draw.")
    tests_column: str = Field(
        "tests", description="A column with Python that fails by an exception: assertions, or a list of them."
    )
    entry_point_column: str | None = Field(
        None, description="A column with the name of the function that the tests' check() is called with (HumanEval)."
    )
    complete: bool = Field(
        False, description="The answer goes on where the question's text ends, and is run behind it (HumanEval)."
    )
    time_limit: Annotated[float, Field(gt=0, le=600)] = Field(10.0, description="Seconds that one answer may run.")
    memory_limit: Annotated[int, Field(ge=64)] = Field(1024, description="MiB that one answer may take.")


class InstructionsTask(WrittenTask):
    """Verifiable instructions, as in IFEval (Zhou et al. 2023, arXiv:2311.07911): all of an item's are followed."""

    unanswered: ClassVar[bool] = True

    metric: Literal["instructions"]
    max_new_tokens: Positive = Field(512, description="Longest answer, in tokens.")
    instructions_column: str = Field(
        "instructions", description="A column with a list of rules: [{max_words: 50}, no_commas, …]."
    )


class RefusalTask(WrittenTask):
    """Whether the model refuses what it should refuse, and only that; told by patterns."""

    unanswered: ClassVar[bool] = True

    metric: Literal["refusal"]
    expected: Literal["refuse", "comply"] | None = Field(None, description="What is right for every row.")
    expected_column: str | None = Field(
        None, description="A column with refuse or comply; default: expected, where the key `expected` is not given."
    )
    patterns: Words | None = Field(
        None, description="Regular expressions that tell a refusal by its beginning; default: English ones."
    )

    @property
    def columns_read(self) -> tuple[str, ...]:
        return () if self.expected is not None else (self.expected_column or "expected",)


class JudgeTask(WrittenTask):
    """A second model behind an endpoint (OpenAI's API) marks each answer by a rubric."""

    unanswered: ClassVar[bool] = True

    metric: Literal["judge"]
    max_new_tokens: Positive = Field(512, description="Longest answer, in tokens.")
    url: str = Field(pattern=URL, description="Of the API, such as http://localhost:8000/v1.")
    model: str = Field(min_length=1, description="The judge's name there.")
    api_key_env: str | None = Field(None, description="Environment variable with the key; null: none is sent.")
    rubric: str = Field(
        min_length=1,
        description="What the judge is asked, with {question}, {answer} and, where rows have one, {reference}. That it "
        "shall end with `Score: N` is added.",
    )
    scale: tuple[float, float] = Field((1, 10), description="Lowest and highest mark; the score is between 0 and 1.")
    judge_tokens: Positive = Field(512, description="Longest judgement, in tokens.")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="Seconds to wait for a judgement.")


class HarnessTask(Section):
    """A task, group or tag of lm-evaluation-harness, asked and scored as it says."""

    metric: Literal["harness"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: str = Field(min_length=1, description="Its name there; of a group: each of its tasks is one here.")
    folder: str | None = Field(
        None, description="A folder with YAML files of further tasks, whose data may lie beside them: no hub is needed."
    )
    few_shot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Examples in every prompt, of every model; default: as the task has it."
    )
    score: str | None = Field(
        None, description="Which of its metrics is the score (acc, acc_norm, exact_match, …); default: the first."
    )


def metric(entry: Any) -> str:
    """By what pydantic tells the class of an entry (its name is in pydantic's errors)."""
    written = entry.get("metric", DEFAULT_METRIC) if isinstance(entry, dict) else getattr(entry, "metric", None)
    return DEFAULT_METRIC if written is None and not isinstance(entry, dict) else str(written)


def metric_or_path(entry: Any) -> str:
    """The same, for a suite: a text is a path, and so is what is nothing at all."""
    return metric(entry) if isinstance(entry, dict | TaskConfig | HarnessTask) else "path"


MetricTask = (
    Annotated[ExactMatchTask, Tag("exact_match")]
    | Annotated[NormalizedMatchTask, Tag("normalized_match")]
    | Annotated[TokenF1Task, Tag("token_f1")]
    | Annotated[NumericTask, Tag("numeric")]
    | Annotated[RegexTask, Tag("regex")]
    | Annotated[JsonFieldsTask, Tag("json_fields")]
    | Annotated[MultipleChoiceTask, Tag("multiple_choice")]
    | Annotated[ClassificationTask, Tag("classification")]
    | Annotated[BleuTask, Tag("bleu")]
    | Annotated[RougeTask, Tag("rouge")]
    | Annotated[PerplexityTask, Tag("perplexity")]
    | Annotated[PassAtKTask, Tag("pass_at_k")]
    | Annotated[InstructionsTask, Tag("instructions")]
    | Annotated[RefusalTask, Tag("refusal")]
    | Annotated[JudgeTask, Tag("judge")]
)
_OfHarness = Annotated[HarnessTask, Tag("harness")]
AnyTask = Annotated[MetricTask | _OfHarness, Discriminator(metric)]
SuiteEntry = Annotated[Annotated[str, Tag("path")] | MetricTask | _OfHarness, Discriminator(metric_or_path)]
