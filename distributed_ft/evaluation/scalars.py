"""The scores in TensorBoard, beside the trainer's curves: scalars, confusion matrices and sample answers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from distributed_ft.artifacts import RunDirectory
from distributed_ft.evaluation.confusion import confusion, image
from distributed_ft.evaluation.scoring import Model
from distributed_ft.evaluation.strength import Frontier
from distributed_ft.evaluation.summary import FEW_SHOT, Scores, Summary
from distributed_ft.records import Sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = 3  # sample answers of a task, the same of every checkpoint
LONGEST = 2000  # characters of a text
EVENTS_SUFFIX = ".evaluation"  # of the eval driver's files: it replaces its own and no others


def log(run: RunDirectory, scores: Scores, summary: Summary) -> None:
    """All scores as scalars beside the trainer's, and what `summary` chose by them, with the answers behind them; those
    of an earlier evaluation are replaced, not repeated."""
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(run.tensorboard.glob(f"*{EVENTS_SUFFIX}"))
    writer = SummaryWriter(str(run.tensorboard), filename_suffix=EVENTS_SUFFIX)
    for model in scores.models:
        if model.name != FEW_SHOT:  # a prompt has no place on the axis of steps
            for tag, value in _scalars(scores, model):
                writer.add_scalar(tag, value, model.step)
            _answers(writer, scores, model)
    for step, drift in summary.drift.items():
        writer.add_scalar("eval/forgetting/kl", drift.kl, step)
    for tag, value, step in _scalars_of_chosen(summary):
        writer.add_scalar(tag, value, step)
    writer.close()
    for path in earlier:
        path.unlink(missing_ok=True)


def _scalars(scores: Scores, model: Model) -> Iterator[tuple[str, float]]:
    for task, scored in scores.of[model.name].items():
        if scored.result.kind != "general":
            result = scored.result
            for metric, value in {result.metric: result.score, **result.scores}.items():
                yield f"eval/{task}/{metric}", value
            for name, value in result.totals.items():  # apart: the score `perplexity` is no perplexity
                if not name.startswith("confusion["):  # an image
                    yield f"eval/{task}/total/{name}", value
            yield f"eval/{task}/empty", result.empty
    general, lost = scores.general_mean(model.name), scores.forgotten(model.name)
    if general is not None and lost is not None:
        yield "eval/general/score", general.value
        yield "eval/forgetting/rate", lost.rate
        yield "eval/forgetting/mean_drop", lost.mean_drop
        yield "eval/forgetting/backward_transfer", lost.backward_transfer


def log_strength(run: RunDirectory, frontier: Frontier) -> None:
    """An adapter's scores by its strength, in percent on the axis of steps. The next `log` takes them away again."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.tensorboard), filename_suffix=f".strength{EVENTS_SUFFIX}")
    for point in frontier.points:
        percent = round(100 * point.strength)
        writer.add_scalar("eval/strength/task_accuracy", point.accuracy, percent)
        if point.mean_drop is not None:
            writer.add_scalar("eval/strength/mean_drop", point.mean_drop, percent)
    writer.close()


def _answers(writer: "SummaryWriter", scores: Scores, model: Model) -> None:
    """Of each task: the first answers as text, and of a classification which label was taken for which."""
    for task, scored in scores.of[model.name].items():
        text = "\n\n---\n\n".join(_told(sample) for sample in scored.samples[:SHOWN])
        writer.add_text(f"samples/{task}", text, model.step)
        found = confusion(scored.result, scored.samples)
        if found is not None:
            drawn = image(found, f"{task}, {model.name}")
            writer.add_image(f"confusion/{task}", drawn, model.step, dataformats="HWC")


def _told(sample: Sample) -> str:
    """One item as Markdown: each text an indented block, in which nothing is markup."""
    asked = "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in sample.request)
    texts = {"Asked": asked, "Right": sample.reference, f"Answered (score {sample.score:.3g})": sample.response}
    parts = []
    for title, text in texts.items():
        block = "\n".join(f"    {line}" for line in (text[:LONGEST] or "(empty)").splitlines())
        parts.append(f"**{title}**\n\n{block}")
    return "\n\n".join(parts)


def _scalars_of_chosen(summary: Summary) -> Iterator[tuple[str, float, int]]:
    """Of BEST, or of the highest scoring checkpoint where none is inside the budget. For the HParams tab, which shows a
    few metrics, by name, and of each the last value of its curve, which may be any checkpoint's."""
    chosen = summary.chosen
    if chosen is not None:
        yield "chosen/task_accuracy", chosen.accuracy, chosen.step
        yield "chosen/inside_budget", float(chosen.step == summary.selection.step), chosen.step
        if chosen.step in summary.forgotten:
            yield "chosen/forgetting", summary.forgotten[chosen.step].rate, chosen.step
