"""Tasks of lm-evaluation-harness, asked by our engines: its prompts, its filters and its scores, item by item.

A task is taken by name, from the harness's own collection or from a folder of YAML files (`folder`).
What a document is asked, how an answer is filtered and scored, and how scores are put together is the harness's own
code (`pip install 'distributed_ft[harness]'`, Gao et al. 2024, doi:10.5281/zenodo.12608602); prompts are plain texts
without a chat template, which is its default. An item whose prompt does not fit into the context is an error here,
where the harness cuts the prompt's beginning off.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from distributed_ft.config import tasks as config
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.files import suggestion
from distributed_ft.errors import ConfigError, brief
from distributed_ft.evaluation.task import Choose, Generate, Kind, Read, Request, Response, Score, Scored

DEFAULT_MAX_NEW_TOKENS = 256  # the harness's own


@dataclass(frozen=True)
class HarnessTask:
    """One task of the harness: a `Task`. An item is one of its documents.

    The score is its first metric that is a mean of the items' (see `_main`), `further` are the others. Of a
    perplexity, whose items have no score between 0 and 1, it is what the harness's figure is the inverse of: the
    probability by word or byte, exp(log-likelihood / words). `totals` are the harness's figures, by its names.
    """

    name: str
    source: Any  # lm_eval.api.task.Task
    main: str  # name of its main metric, `acc` or `exact_match,strict-match`
    kind: Kind = "task"
    version: int = 1

    @property
    def metric(self) -> str:
        return self.main.partition(",")[0]

    @cached_property
    def chance(self) -> float:
        shares = [1 / len(r.choices) for r in self._requests if isinstance(r, Choose) and len(r.choices) > 1]
        return math.fsum(shares) / len(shares) if shares and self.metric.startswith("acc") else 0.0

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over all that is asked, the task's settings, and the harness's version."""
        rules = [self.main, self.version, metadata.version("lm_eval"), str(self.source.VERSION)]
        settings = json.dumps(self.source.dump_config(), sort_keys=True, default=str)
        content = [[example.digest for example in self._examples], [repr(r) for r in self._requests]]
        return hashlib.sha256(json.dumps([content, rules, settings]).encode()).hexdigest()

    def examples(self) -> Sequence[Example]:
        return self._examples

    def request(self, example: Example) -> Request:
        return self._requests[example.line - 1]

    def score(self, example: Example, response: Response) -> Score:
        found = self._metrics(example.line - 1, response)
        values = {name: float(value) for name, value in found.items() if _is_share(value)}
        main = values.pop(self.main, None)
        if main is None:
            main = _inverse_perplexity(self.name, found[self.main])
        return Score(main, values)

    def totals(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Each metric by the harness's own aggregation."""
        items = [self._metrics(example.line - 1, response) for example, response, _ in scored]
        together = {}
        for name in items[0]:
            aggregate: Callable[[list[Any]], Any] = self.source.aggregation().get(name.partition(",")[0], _mean)
            with contextlib.suppress(TypeError, ValueError):  # a figure that is none: a table, a list
                together[name] = float(aggregate([item[name] for item in items]))
        return {name: value for name, value in together.items() if math.isfinite(value)}

    # --- the harness's own ------------------------------------------------------------------------------------------

    @cached_property
    def _documents(self) -> list[tuple[dict[str, Any], list[Any]]]:
        """Each document with its instances, in order."""
        by_document: dict[int, list[Any]] = {}
        with _quiet():
            self.source.build_all_requests()
        for instance in self.source.instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        ordered = [sorted(by_document[number], key=lambda i: i.idx) for number in sorted(by_document)]
        return [(instances[0].doc, instances) for instances in ordered]

    @cached_property
    def _examples(self) -> tuple[Example, ...]:
        path = f"lm_eval:{self.source.task_name}"
        found = []
        for line, (document, instances) in enumerate(self._documents, 1):
            messages = (Message("user", str(instances[0].args[0])), Message("assistant", self._target(document)))
            found.append(Example(f"{self.name}:{line}", messages, line, path, None))
        return tuple(found)

    def _target(self, document: dict[str, Any]) -> str:
        target = self.source.doc_to_target(document)
        if self.source.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int):
            choices = self.source.doc_to_choice(document)
            return str(choices[target]).strip() if 0 <= target < len(choices) else str(target)
        return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)

    @cached_property
    def _requests(self) -> tuple[Request, ...]:
        return tuple(
            _request(e.id, instances) for e, (_, instances) in zip(self._examples, self._documents, strict=True)
        )

    def _metrics(self, place: int, response: Response) -> dict[str, Any]:
        """What the harness computes of one document, by metric; with several filters by `metric,filter`, as it does."""
        document, instances = self._documents[place]
        filters = getattr(self.source, "_filters", [])
        for instance, answers in zip(instances, _answers(instances, response), strict=True):
            instance.resps, instance.filtered_resps = answers, {}
        for ensemble in filters:
            ensemble.apply(instances)
        found: dict[str, Any] = {}
        for key in instances[0].filtered_resps or ["none"]:
            results = [i.filtered_resps.get(key, i.resps[0]) for i in instances]
            with _quiet():
                of_filter = self.source.process_results(document, results)
            suffix = f",{key}" if len(filters) > 1 else ""
            found |= {f"{name}{suffix}": value for name, value in of_filter.items()}
        return found


def harness_tasks(entry: config.HarnessTask, kind: Kind, key: str) -> list[HarnessTask]:
    """The tasks of an entry of run.yaml at `key`; several where it names a group (`name.task`).

    Raises:
        ConfigError: the harness is not installed, has no such task, or cannot build it (its data is not at hand).
    """
    found = _load(entry.task, None if entry.folder is None else Path(entry.folder), entry.few_shot, key)
    alone = len(found) == 1
    return [
        HarnessTask(entry.name if alone else f"{entry.name}.{name}", source, _main(source, entry.score, key), kind)
        for name, source in found.items()
    ]


def _main(source: Any, wanted: str | None, key: str) -> str:
    """The metric that is the score: the one wanted, else the first one of the task's list whose items have scores.

    Raises ConfigError when there is none, or not the one wanted.
    """
    listed = list(source.higher_is_better())
    filters = [ensemble.name for ensemble in getattr(source, "_filters", [])]
    names = [f"{m},{f}" for m in listed for f in filters] if len(filters) > 1 else listed
    if wanted is not None:
        for name in names:
            if wanted in (name, name.partition(",")[0]):
                return name
        hint = suggestion((wanted,), tuple(names))
        raise ConfigError(
            f"{key}.score: {wanted!r}: {source.task_name} has no such metric{hint}; there are {', '.join(names)}"
        )
    usable = [name for name in names if source.higher_is_better().get(name.partition(",")[0])]
    perplexities = [name for name in names if name in ("word_perplexity", "byte_perplexity")]
    for name in [*usable, *perplexities]:
        return name
    raise ConfigError(f"{key}: {source.task_name} has no metric that items can be compared by; give score: NAME")


def _request(identity: str, instances: Sequence[Any]) -> Request:
    """The one request that a document's instances are."""
    first = instances[0]
    if first.request_type == "loglikelihood":
        contexts = tuple(str(i.args[0]) for i in instances)
        choices = tuple(str(i.args[1]) for i in instances)
        same = len(set(contexts)) == 1 and contexts[0] != ""
        return Choose(identity, (Message(TEXT, contexts[0]),), choices, contexts=None if same else contexts)
    if first.request_type == "loglikelihood_rolling":
        return Read(identity, str(first.args[0]))
    settings = dict(first.args[1])
    until = settings.get("until") or []
    sampled = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
    return Generate(
        identity,
        (Message(TEXT, str(first.args[0])),),
        int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS),
        stop=tuple([until] if isinstance(until, str) else until),
        draws=first.repeats or 1,
        temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
    )


def _answers(instances: Sequence[Any], response: Response) -> list[list[Any]]:
    """What the harness's model would have returned for each instance."""
    kind = instances[0].request_type
    if kind == "loglikelihood":
        return [[pair] for pair in zip(response.nats, response.greedy, strict=True)]
    return [[response.nats[0]]] if kind == "loglikelihood_rolling" else [list(response.texts)]


def _is_share(value: Any) -> bool:
    try:
        return 0.0 <= float(value) <= 1.0
    except (TypeError, ValueError):
        return False


def _inverse_perplexity(task: str, value: Any) -> float:
    """Of a pair (log-likelihood, words or bytes), or of a log-likelihood."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float):
        nats, count = value
        return math.exp(min(0.0, float(nats) / max(1, count)))
    if isinstance(value, float) and value <= 0:
        return math.exp(value)
    raise ConfigError(f"evaluation: {task}: its metric gives {value!r} for an item, which is no score between 0 and 1")


def _mean(values: list[Any]) -> float:
    return math.fsum(map(float, values)) / len(values)


def _load(task: str, folder: Path | None, few_shot: int | None, key: str) -> dict[str, Any]:
    """Tasks by name."""
    try:
        with _quiet():
            import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{key}: {task!r} is a task of lm-evaluation-harness, which cannot be imported ({error}); "
            "pip install 'distributed_ft[harness]'"
        ) from None
    # to look through the harness's own collection takes half a minute, so the folder is first
    manager = None if folder is None else _manager(folder, False)
    if manager is None or task not in manager.all_tasks:
        manager = _manager(folder, True)
    if task not in manager.all_tasks:
        where = "" if folder is None else f" or {folder}"
        raise ConfigError(
            f"{key}: {task!r}: no task, group or tag of lm-evaluation-harness{where} has this name, nor has a file"
            f"{suggestion((task,), tuple(manager.all_tasks))}"
        )
    try:
        with _quiet():
            found = cast(dict[str, Any], manager.load([task])["tasks"])
            for source in found.values():
                if few_shot is not None:
                    source.set_config(key="num_fewshot", value=few_shot)
                source.set_fewshot_seed(seed=1234)  # the harness's own
    except Exception as error:  # whatever a task's code, its data or the hub raises
        raise ConfigError(
            f"{key}: lm-evaluation-harness cannot build {task!r}: {brief(error)}; without a connection a task needs "
            "local data (dataset_path: json, dataset_kwargs: {data_files: …} in its YAML, or a cached data set)"
        ) from None
    return found


@cache
def _manager(folder: Path | None, with_defaults: bool) -> Any:
    """The names and files of tasks."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=None if folder is None else str(folder), include_defaults=with_defaults)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its bars and notes are not for who waits for a score."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
