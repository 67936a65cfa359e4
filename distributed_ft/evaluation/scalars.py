"""The scores as TensorBoard scalars, beside the trainer's."""

from collections.abc import Iterator

from distributed_ft.artifacts import RunDirectory
from distributed_ft.evaluation.scoring import Model
from distributed_ft.evaluation.stats import mean, mean_of
from distributed_ft.evaluation.summary import FEW_SHOT, Scores

EVENTS_SUFFIX = ".evaluation"  # of the eval driver's files: it replaces its own and no others


def log(run: RunDirectory, scores: Scores) -> None:
    """All scores as scalars beside the trainer's; those of an earlier evaluation are replaced, not repeated."""
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(run.tensorboard.glob(f"*{EVENTS_SUFFIX}"))
    writer = SummaryWriter(str(run.tensorboard), filename_suffix=EVENTS_SUFFIX)
    for model in scores.models:
        if model.name != FEW_SHOT:  # a prompt has no place on the axis of steps
            for tag, value in _scalars(scores, model):
                writer.add_scalar(tag, value, model.step)
    best = run.pointer("BEST")
    if best is not None and best.name in scores.of:
        for tag, value in _scalars_of_best(scores, best.name):
            writer.add_scalar(tag, value, best.step)
    writer.close()
    for path in earlier:
        path.unlink(missing_ok=True)


def _scalars(scores: Scores, model: Model) -> Iterator[tuple[str, float]]:
    for task, scored in scores.of[model.name].items():
        if scored.result.kind == "task":
            for metric, value in {scored.result.metric: scored.result.score, **scored.result.scores}.items():
                yield f"eval/{task}/{metric}", value
    general, lost = scores.general_mean(model.name), scores.forgotten(model.name)
    if general is not None and lost is not None:
        yield "eval/general/score", general.value
        yield "eval/forgetting/rate", lost.rate
        yield "eval/forgetting/mean_drop", lost.mean_drop


def _scalars_of_best(scores: Scores, name: str) -> Iterator[tuple[str, float]]:
    """For the HParams tab, which shows the last value of a curve, and that is the last checkpoint's."""
    by_task, lost = scores.by_task(name), scores.forgotten(name)
    if by_task:
        yield "best/task_accuracy", mean_of([mean(items) for items in by_task.values()]).value
    if lost is not None:
        yield "best/forgetting", lost.rate
