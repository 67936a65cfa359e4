"""What the types cannot say about one task: keys of a metric that must fit one another."""

import re
from collections import Counter
from collections.abc import Iterator

import regex

from distributed_ft.config.document import Key
from distributed_ft.config.tasks import (
    UNASKED,
    ClassificationTask,
    JudgeTask,
    MultipleChoiceTask,
    PassAtKTask,
    RefusalTask,
    RegexTask,
    TaskConfig,
)

_FIELD = re.compile(r"\{(\w+)\}")


def task_problems(task: TaskConfig, code_allowed: bool) -> Iterator[tuple[Key, str]]:
    """Key within the task, and what is wrong."""
    match task:
        case RegexTask():
            yield from _pattern(("pattern",), task.pattern)
        case RefusalTask():
            for index, pattern in enumerate(task.patterns or ()):
                yield from _pattern(("patterns", index), pattern)
            if task.expected is not None and task.expected_column is not None:
                yield ("expected_column",), "is not looked into where `expected` is given; remove one of them"
        case MultipleChoiceTask():
            yield from _different(("choices",), task.choices)
            if task.choices is not None and task.choices_column is not None:
                yield ("choices_column",), "is not looked into where `choices` are given; remove one of them"
        case ClassificationTask():
            yield from _different(("labels",), task.labels)
        case PassAtKTask():
            yield from _code(task, code_allowed)
        case JudgeTask():
            yield from _judge(task)


def _pattern(key: Key, pattern: str) -> Iterator[tuple[Key, str]]:
    try:
        regex.compile(pattern)
    except regex.error as error:
        yield key, f"{pattern!r} is not a regular expression: {error}; in YAML, quote it with single quotes"


def _different(key: Key, names: tuple[str, ...] | None) -> Iterator[tuple[Key, str]]:
    if names is None:
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        yield key, f"{twice[0]!r} is given twice; remove one of them"
    elif len(names) < 2:
        yield key, "has one value, and there is nothing to choose; give two or more"


def _code(task: PassAtKTask, allowed: bool) -> Iterator[tuple[Key, str]]:
    if not allowed:
        yield ("metric",), UNASKED
    if max(task.k) > task.draws:
        yield ("k",), f"pass@{max(task.k)} needs as many draws, and there are {task.draws}; write draws: {max(task.k)}"
    if task.draws > 1 and task.temperature == 0:
        yield ("temperature",), f"0 makes all {task.draws} draws the same; write a temperature such as 0.8"


def _judge(task: JudgeTask) -> Iterator[tuple[Key, str]]:
    low, high = task.scale
    if low >= high:
        yield ("scale",), f"{high:g} is not above {low:g}; write the lowest mark first, as in [1, 10]"
    fields = set(_FIELD.findall(task.rubric))
    if "answer" not in fields:
        yield ("rubric",), "shows the judge no answer; write {answer} where it shall stand"
    for unknown in sorted(fields - {"question", "answer", "reference"}):
        yield ("rubric",), f"{{{unknown}}} stands for nothing; there are {{question}}, {{answer}} and {{reference}}"
