"""From a task's section in run.yaml to its rule: one case a metric."""

from collections.abc import Sequence
from typing import assert_never

from distributed_ft.config import tasks as config
from distributed_ft.data.examples import Example
from distributed_ft.errors import ConfigError
from distributed_ft.evaluation import sandbox
from distributed_ft.evaluation.endpoint import Endpoint
from distributed_ft.evaluation.tasks.choices import MultipleChoice
from distributed_ft.evaluation.tasks.classification import Classification
from distributed_ft.evaluation.tasks.code import PassAtK
from distributed_ft.evaluation.tasks.exact_match import ExactMatch
from distributed_ft.evaluation.tasks.instructions import Instructions
from distributed_ft.evaluation.tasks.json_fields import json_fields
from distributed_ft.evaluation.tasks.judge import Judge
from distributed_ft.evaluation.tasks.numeric import Numeric
from distributed_ft.evaluation.tasks.overlap import Bleu, Rouge
from distributed_ft.evaluation.tasks.pattern import Pattern, compiled
from distributed_ft.evaluation.tasks.perplexity import Perplexity
from distributed_ft.evaluation.tasks.refusal import PATTERNS, Refusal
from distributed_ft.evaluation.tasks.rule import Rule
from distributed_ft.evaluation.tasks.squad import NormalizedMatch, TokenF1


def rule_of(task: config.MetricTask, rows: Sequence[Example], seed: int = 0) -> Rule:
    """The rule of a task; `rows` are asked for their labels. Raises ConfigError for settings that cannot be used."""
    match task:
        case config.ExactMatchTask():
            return ExactMatch(task.max_new_tokens)
        case config.NormalizedMatchTask():
            return NormalizedMatch(
                task.max_new_tokens,
                references_column=task.references_column,
                case=task.ignore_case,
                punctuation=task.ignore_punctuation,
                articles=task.ignore_articles,
            )
        case config.TokenF1Task():
            return TokenF1(task.max_new_tokens, references_column=task.references_column)
        case config.NumericTask():
            tolerances = (task.tolerance, task.relative_tolerance)
            return Numeric(task.max_new_tokens, *tolerances, task.take, task.decimal_comma)
        case config.RegexTask():
            compiled(task.pattern, key=f"evaluation.tasks[{task.name}].pattern")
            return Pattern(task.max_new_tokens, task.pattern, task.take, task.fullmatch, task.ignore_case)
        case config.JsonFieldsTask():
            return json_fields(task.name, task.max_new_tokens, task.json_schema)
        case config.MultipleChoiceTask():
            column = task.choices_column or "choices"
            return MultipleChoice(task.choices, column, task.answer, task.normalize, task.letters)
        case config.ClassificationTask():
            rule = Classification(task.max_new_tokens, task.labels, task.by == "likelihood")
            return rule.for_rows(rows)
        case config.BleuTask():
            return Bleu(task.max_new_tokens, task.tokenize, task.lowercase)
        case config.RougeTask():
            return Rouge(task.max_new_tokens, task.variant, task.stemmer, task.tokenize == "words")
        case config.PerplexityTask():
            return Perplexity()
        case config.PassAtKTask():
            return _code(task, seed)
        case config.InstructionsTask():
            return Instructions(task.max_new_tokens, task.instructions_column)
        case config.RefusalTask():
            for number, pattern in enumerate(task.patterns or ()):
                compiled(pattern, key=f"evaluation.tasks[{task.name}].patterns[{number}]")
            column = task.expected_column or "expected"
            return Refusal(task.max_new_tokens, task.expected, column, task.patterns or PATTERNS)
        case config.JudgeTask():
            try:
                endpoint = Endpoint(task.url, task.model, task.api_key_env, task.judge_tokens, task.timeout)
            except ConfigError as error:
                raise ConfigError(f"evaluation.tasks[{task.name}].{error}") from None
            return Judge(task.max_new_tokens, endpoint, task.rubric, task.scale)
        case _:
            assert_never(task)


def _code(task: config.PassAtKTask, seed: int) -> Rule:
    reason = sandbox.problem()
    if reason is not None:
        raise ConfigError(
            f"evaluation.tasks[{task.name}].metric: nothing here can hold code that the model wrote: "
            f"{reason}; evaluate on another machine, or leave the task out"
        )
    return PassAtK(
        task.max_new_tokens,
        k=task.k,
        draws=task.draws,
        temperature=task.temperature,
        seed=seed,
        tests=task.tests_column,
        entry_point=task.entry_point_column,
        complete=task.complete,
        limits=sandbox.Limits(task.time_limit, task.memory_limit),
    )
