"""The scores as TensorBoard scalars, beside the trainer's."""

from collections.abc import Iterator

from distributed_ft.artifacts import RunDirectory
from distributed_ft.evaluation.scoring import Model
from distributed_ft.evaluation.summary import FEW_SHOT, Scores, Summary

EVENTS_SUFFIX = ".evaluation"  # of the eval driver's files: it replaces its own and no others


def log(run: RunDirectory, scores: Scores, summary: Summary) -> None:
    """All scores as scalars beside the trainer's, and what `summary` chose by them; those of an earlier evaluation are
    replaced, not repeated."""
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(run.tensorboard.glob(f"*{EVENTS_SUFFIX}"))
    writer = SummaryWriter(str(run.tensorboard), filename_suffix=EVENTS_SUFFIX)
    for model in scores.models:
        if model.name != FEW_SHOT:  # a prompt has no place on the axis of steps
            for tag, value in _scalars(scores, model):
                writer.add_scalar(tag, value, model.step)
    for tag, value, step in _scalars_of_chosen(summary):
        writer.add_scalar(tag, value, step)
    writer.close()
    for path in earlier:
        path.unlink(missing_ok=True)


def _scalars(scores: Scores, model: Model) -> Iterator[tuple[str, float]]:
    for task, scored in scores.of[model.name].items():
        if scored.result.kind != "general":
            for metric, value in {scored.result.metric: scored.result.score, **scored.result.scores}.items():
                yield f"eval/{task}/{metric}", value
    general, lost = scores.general_mean(model.name), scores.forgotten(model.name)
    if general is not None and lost is not None:
        yield "eval/general/score", general.value
        yield "eval/forgetting/rate", lost.rate
        yield "eval/forgetting/mean_drop", lost.mean_drop


def _scalars_of_chosen(summary: Summary) -> Iterator[tuple[str, float, int]]:
    """Of BEST, or of the highest scoring checkpoint where none is inside the budget. For the HParams tab, which shows a
    few metrics, by name, and of each the last value of its curve, which may be any checkpoint's."""
    scored = [c for c in summary.candidates if c.tasks]
    best = [c for c in scored if c.step == summary.selection.step]
    if scored:
        chosen = max(best or scored, key=lambda c: (c.accuracy, -c.step))
        yield "chosen/task_accuracy", chosen.accuracy, chosen.step
        yield "chosen/inside_budget", float(bool(best)), chosen.step
        if chosen.step in summary.forgotten:
            yield "chosen/forgetting", summary.forgotten[chosen.step].rate, chosen.step
