"""One model on one task: asked, scored and stored, or found stored already under the same identity."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distributed_ft.artifacts import RunDirectory, append_json_line, read_json, read_json_lines, write_atomic
from distributed_ft.data.examples import Example
from distributed_ft.errors import CheckpointError, EvaluationError
from distributed_ft.evaluation.clusters import clusters_of
from distributed_ft.evaluation.engines import Engine
from distributed_ft.evaluation.few_shot import with_examples
from distributed_ft.evaluation.stats import mean
from distributed_ft.evaluation.task import Choose, Generate, Read, Request, Response, Score, Task, reference
from distributed_ft.evaluation.tasks.rule import Judging
from distributed_ft.publishing import publish_result
from distributed_ft.records import Choice, Sample, TaskResult


@dataclass(frozen=True)
class Model:
    """One row of the comparison. `name` is its directory under evaluation/; `step` 0 is the base."""

    name: str
    weights: Path | None  # of a checkpoint; None for the base
    digest: str | None  # of everything that its answers depend on but the prompt; None for a checkpoint that is gone
    step: int
    strength: float = 1.0  # of its adapter


def at_strength(model: Model, strength: float) -> Model:
    """A checkpoint with its adapter at some strength, named `step-00000500@0.50`."""
    digest = hashlib.sha256(f"{model.digest} at {strength!r}".encode()).hexdigest()
    percent = f"{strength:.2f}" if round(strength, 2) == strength else f"{strength:g}"
    return replace(model, name=f"{model.name}@{percent}", digest=digest, strength=strength)


@dataclass(frozen=True)
class Scored:
    """A result with its samples, in the task's order; `stored` if it was on disk already."""

    result: TaskResult
    samples: tuple[Sample, ...]
    stored: bool


def task_digest(task: Task, settings: Mapping[str, str | int], shots: Sequence[Example]) -> str:
    """Identity of a question: rows, metric and answer length; template and decoding; the examples in the prompt."""
    parts = [task.digest, dict(settings), [example.digest for example in shots]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stored(run: RunDirectory, model: Model, task: Task, digest: str) -> Scored | None:
    """The stored score, if it is of this very model and question, asked for the same end (`Kind`), and all its samples
    are there."""
    try:
        result = TaskResult(**read_json(run.results(model.name, task.name) / "result.json"))
        samples = run.samples(model.name, task.name)
    except (CheckpointError, ValidationError, TypeError, OSError):
        return None  # none, or one that a new score will replace
    same = model.digest in (None, result.model_digest) and result.task_digest == digest and result.kind == task.kind
    return Scored(result, tuple(samples), True) if same and len(samples) == result.n else None


def adopt(run: RunDirectory, scored: Scored, name: str) -> None:
    """Store a score under the name of another model, which is the same one: it is not asked twice."""
    result = scored.result.model_copy(update={"model": name, "seconds": 0.0})
    publish_result(run, result, scored.samples)


def score(
    run: RunDirectory, engine: Engine, model: Model, task: Task, digest: str, shots: Sequence[Example] = ()
) -> Scored:
    """Ask the engine, which answers as `model`, and store samples and result. Raises EvaluationError.

    Items that were answered before a kill are not asked again.
    """
    examples = task.examples()
    requests = [with_examples(task.request(example), shots) for example in examples]
    responses, seconds = _answers(run, engine, model, task, digest, requests)
    scores = [task.score(example, response) for example, response in zip(examples, responses, strict=True)]
    samples = tuple(_sample(task, *item) for item in zip(examples, requests, responses, scores, strict=True))
    totals = task.totals(list(zip(examples, responses, scores, strict=True)))
    empty = [isinstance(r, Generate) and not s.response.strip() for r, s in zip(requests, samples, strict=True)]
    result = _result(model, task, digest, samples, totals, seconds)
    result = result.model_copy(update={"empty": sum(empty) / len(empty)})
    publish_result(run, result, samples)
    return Scored(result, samples, False)


def _answers(
    run: RunDirectory, engine: Engine, model: Model, task: Task, digest: str, requests: Sequence[Request]
) -> tuple[list[Response], float]:
    """The response to each request, and the seconds that they took; each batch is kept when it is done.

    A line belongs to one model and one question, which covers the rows and their order and what shares a batch, so
    whoever finds it has the answers that it would get.
    """
    kept = run.answers(model.name, task.name)
    key = {"model_digest": model.digest, "task_digest": digest}
    done = [line for line in read_json_lines(kept) if {k: line.get(k) for k in key} == key]
    known = {int(place): _response(answer) for line in done for place, answer in line["answers"].items()}
    if kept.exists():  # without half a line, or answers of another model
        write_atomic(kept, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done))
    seconds = sum(line["seconds"] for line in done)
    left = [batch for batch in engine.batches(requests) if not all(place in known for place in batch)]
    started = time.perf_counter()
    for which, answers in engine.answers([[requests[place] for place in batch] for batch in left]):
        if isinstance(task, Judging):  # before they are kept, so that no judge is asked twice
            answers = task.judged([task.examples()[place] for place in left[which]], answers)
        found = dict(zip(left[which], answers, strict=True))
        took, started = time.perf_counter() - started, time.perf_counter()
        as_json = {place: asdict(response) for place, response in found.items()}
        append_json_line(kept, {**key, "answers": as_json, "seconds": round(took, 3)})
        known |= found
        seconds += took
    return [known[place] for place in range(len(requests))], seconds


def _response(stored: Mapping[str, Any]) -> Response:
    """What `asdict` made of one, and JSON of its tuples."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    return Response(**values)


def _sample(task: Task, example: Example, request: Request, response: Response, scored: Score) -> Sample:
    for name, value in {task.metric: scored.value, **scored.further}.items():
        if not isfinite(value):
            raise EvaluationError(f"item {example.id!r}: its {name} is {value}, which is no score; correct the task")
    messages = () if isinstance(request, Read) else request.messages
    return Sample(
        id=example.id,
        doc_hash=example.digest,
        group=example.group,
        cluster=example.cluster,
        request=[{"role": m.role, "content": m.content} for m in messages],
        reference=reference(example),
        response=_said(request, response),
        score=scored.value,
        scores=dict(scored.further),
        answer=scored.answer,
        draws=list(response.texts) if len(response.texts) > 1 else None,
        choices=_choices(request, response),
        judgement=response.judgement,
    )


def _said(request: Request, response: Response) -> str:
    """The text; of choices, the likeliest."""
    if isinstance(request, Choose):
        return request.choices[max(range(len(response.nats)), key=response.nats.__getitem__)]
    return response.text


def _choices(request: Request, response: Response) -> list[Choice] | None:
    if isinstance(request, Generate):
        return None
    texts = request.choices if isinstance(request, Choose) else ("",)
    each = zip(texts, response.nats, response.tokens, response.greedy, strict=True)
    return [Choice(text=text, nats=nats, tokens=tokens, greedy=greedy) for text, nats, tokens, greedy in each]


def _result(
    model: Model, task: Task, digest: str, samples: Sequence[Sample], totals: Mapping[str, float], seconds: float
) -> TaskResult:
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.group is not None:
            by_group[sample.group].append(sample)
    assert model.digest is not None, "a checkpoint that is gone cannot be asked"
    clusters = clusters_of(samples)
    overall = mean([sample.score for sample in samples], clusters)
    further = {name: mean([s.scores[name] for s in samples], clusters) for name in samples[0].scores}
    groups = {name: mean([s.score for s in of], clusters_of(of)) for name, of in sorted(by_group.items())}
    return TaskResult(
        model=model.name,
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        score=overall.value,
        stderr=overall.stderr,
        n=overall.n,
        clusters=None if clusters is None else overall.units,
        scores={name: found.value for name, found in further.items()},
        scores_stderr={name: found.stderr for name, found in further.items()},
        totals=dict(totals),
        groups={name: found.value for name, found in groups.items()},
        groups_stderr={name: found.stderr for name, found in groups.items()},
        chance=task.chance,
        model_digest=model.digest,
        task_digest=digest,
        seconds=round(seconds, 3),
    )
