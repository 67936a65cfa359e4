"""One arm of `eval_vs_harness`: loads the base, answers every task once, and reports seconds and scores.

    python -m benchmarks.eval_worker ours|harness BASE TASKS_FOLDER BATCH_SIZE NAMES OUT

Timed is the answering alone: of ours `engine.answer`, of the harness its `HFLM`'s `generate_until` and `loglikelihood`
on the same instances. Loading, reading rows and building prompts are not, nor is a first pass over eight items.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from distributed_ft.config import tasks as config
from distributed_ft.config.schema import EvaluationConfig
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.task import Response
from distributed_ft.evaluation.tasks.harness import HarnessTask, harness_tasks

WARM_UP = 8  # items


def main(argv: Sequence[str]) -> int:
    arm, base, folder, batch_size, names, out = argv
    torch.set_num_threads(1)
    entries = [config.HarnessTask(metric="harness", name=n, task=n, folder=folder) for n in names.split(",")]
    tasks = [harness_tasks(entry, "task", entry.name)[0] for entry in entries]
    answer = _ours(base, int(batch_size)) if arm == "ours" else _theirs(base, int(batch_size))
    measured = {}
    for task in tasks:
        answer(task, WARM_UP)
        responses, seconds = harness.timed(partial(answer, task, None))
        scores = [task.score(e, r).value for e, r in zip(task.examples(), responses, strict=True)]
        measured[task.name] = {"seconds": seconds, "scores": scores}
    harness.report(Path(out), measured)
    return 0


Answer = Callable[[HarnessTask, int | None], list[Response]]


def _ours(base: str, batch_size: int) -> Answer:
    engine = TransformersEngine(base, "fp32", batch_size, batch_tokens=EvaluationConfig().batch_tokens)
    engine.use(None)

    def answer(task: HarnessTask, most: int | None) -> list[Response]:
        return engine.answer([task.request(example) for example in task.examples()[:most]])

    return answer


def _theirs(base: str, batch_size: int) -> Answer:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=base, dtype="float32", device="cpu", batch_size=batch_size)

    def answer(task: HarnessTask, most: int | None) -> list[Response]:
        groups = [instances for _, instances in task._documents[:most]]
        flat = [instance for instances in groups for instance in instances]
        kind = flat[0].request_type
        found: list[Any] = getattr(model, kind)(flat, disable_tqdm=True)
        answers = iter(found)
        return [_response(kind, [next(answers) for _ in instances]) for instances in groups]

    return answer


def _response(kind: str, answers: list[Any]) -> Response:
    if kind == "generate_until":
        return Response(texts=tuple(answers))
    if kind == "loglikelihood_rolling":
        return Response(nats=(answers[0],), tokens=(0,), greedy=(False,))
    return Response(nats=tuple(a[0] for a in answers), tokens=(0,) * len(answers), greedy=tuple(a[1] for a in answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
