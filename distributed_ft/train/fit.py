"""The training loop."""

import math
import shlex
from collections.abc import Sequence
from typing import NoReturn

import torch

from distributed_ft.artifacts import resume_command
from distributed_ft.data.batches import MicroBatch, micro_batches, validation_batches
from distributed_ft.errors import Stopped, TrainingError
from distributed_ft.parallel.strategy import StepInfo
from distributed_ft.train import checkpoint
from distributed_ft.train.metrics import StepRecord
from distributed_ft.train.run import Run
from distributed_ft.train.schedule import learning_rate


def fit(run: Run) -> None:
    """Train from `run.state.step` to `run.total_steps`, with checkpoints and validation losses on the way; or until the
    eval driver says that more steps do not help (`evaluation.early_stop`).

    Raises:
        Stopped: asked to stop; there is a checkpoint of the last finished step.
        TrainingError: the loss or gradient was not finite too often in a row.
        CheckpointError: a checkpoint could not be written. (With `checkpoint.async` it comes at a later step.)
    """
    world, strategy, optim, clock = run.world, run.strategy, run.config.optim, run.clock
    run.stop.at_boundaries()
    run.where.begin(run.state.step, run.total_steps)
    if run.state.validation_owed:
        _validate(run)
    early = None
    for step in range(run.state.step, run.total_steps):
        with clock("data"):
            batch = _batch(run, step)
            supervised, size = sum(m.num_supervised for m in batch), sum(m.num_tokens for m in batch)
        early = run.enough
        flags = (run.stop.requested, early is not None, run.checkpoint_written)
        tokens, input_tokens, stop, enough, written = world.sum(supervised, size, *flags)
        if written == world.size:  # so that all ranks learn of it, and of a failure, at the same step
            _finish_checkpoint(run)
        if stop:
            _stop(run)
        if enough:
            break
        loss = torch.zeros((), device=world.device)
        for i, micro in enumerate(batch):
            run.where.alive()
            strategy.sync_gradients(i == len(batch) - 1)
            with clock("forward"):
                share = run.model(micro) / max(tokens, 1)
            with clock("backward"):
                strategy.backward(share)
            loss += share.detach()
        with clock("step"):
            (mean_loss,) = world.sum(loss.item())
            lr = learning_rate(optim, step, run.total_steps)
            info = strategy.step(lr, usable=math.isfinite(mean_loss))
        run.state.step, run.state.tokens = step + 1, run.state.tokens + int(tokens)
        _record(run, mean_loss, lr, info, int(tokens), int(input_tokens))
        _stop_if_diverged(run, mean_loss, info)
        _validate_and_save(run)
    _finish(run, early)


def _finish(run: Run, early: str | None) -> None:
    """What was asked for is done, or all ranks agreed that it is enough: `early` (on rank 0) says why."""
    if run.state.step > run.last_saved:  # of a run that ends early
        save(run)
    _finish_checkpoint(run)
    run.where.enter("finished", early)
    if early is not None and run.metrics is not None:
        path = shlex.quote(str(run.directory.path))
        run.metrics.say(
            f"ended early, after step {run.state.step} of {run.total_steps}: {early}. To train on all the same: "
            f"dft eval {path} evaluation.early_stop=null, then dft train {path}"
        )


def _batch(run: Run, step: int) -> Sequence[MicroBatch]:
    world = run.world
    batch = micro_batches(run.order, step, world.rank, world.size, run.config.optim.micro_batch_size)
    return [micro.to(world.device) for micro in batch]


def _record(run: Run, loss: float, lr: float, info: StepInfo, tokens: int, input_tokens: int) -> None:
    seconds, parts = run.clock.lap()
    step = run.state.step
    run.where.stepped(step, loss if math.isfinite(loss) else None, input_tokens / seconds)
    if run.metrics is None:
        return
    memory = torch.cuda.max_memory_allocated(run.world.device) if run.world.device.type == "cuda" else None
    samples = run.order.digest(step - 1)
    epoch = run.order.epoch(step)
    run.metrics.step(
        StepRecord(
            *(step, epoch, loss, info.grad_norm, lr, tokens, input_tokens, samples, info.skipped, seconds, parts),
            run.world.size,
        ),
        memory,
    )


def _stop_if_diverged(run: Run, loss: float, info: StepInfo) -> None:
    """Count steps that were skipped in a row, on every rank alike; give up, with a diagnosis, after so many."""
    run.state.skipped_in_a_row = run.state.skipped_in_a_row + 1 if info.skipped else 0
    limit = run.config.optim.max_skipped_steps
    if run.state.skipped_in_a_row < limit:
        return
    _finish_checkpoint(run)
    what = "the loss" if not math.isfinite(loss) else "the gradient"
    rows = ", ".join(run.order.sample_ids(run.state.step - 1)[:8])
    raise TrainingError(
        f"stopped at step {run.state.step}: {what} was not finite for {limit} steps in a row (loss {loss}, "
        f"gradient norm {info.grad_norm}); all of them were skipped. Rows of the last one: {rows}. Usual causes: a "
        f"learning rate that is too high (optim.lr is {run.config.optim.lr}), a damaged base model, model.dtype. The "
        "newest checkpoint is from before; change the setting under another name, or look at those rows"
    )


def _validate_and_save(run: Run) -> None:
    """What is due after a step: validation loss, checkpoint; both at the last step."""
    step, last = run.state.step, run.state.step == run.total_steps
    every = run.config.checkpoint.every
    if run.validation is not None and (last or step % (run.config.evaluation.validation_every or every) == 0):
        _validate(run)
    if last or step % every == 0:
        save(run)


def _validate(run: Run) -> None:
    """Record the validation loss after this step. A request to stop ends it; the run makes it up when it goes on."""
    run.where.enter("validating")
    loss = validation_loss(run)
    run.state.validation_owed = loss is None
    if loss is None:
        _stop(run)
    seconds, _ = run.clock.lap()
    if run.metrics is not None:
        run.metrics.validation(run.state.step, loss, seconds)
    run.where.enter("training")


def save(run: Run) -> None:
    """Begin a checkpoint of this step, after the one before is finished. A collective."""
    run.where.enter("saving")
    _finish_checkpoint(run)
    run.saving = checkpoint.save(run.directory, run.config, run.world, run.strategy, run.token_loss.model, run.state)
    run.last_saved = run.state.step
    if not run.config.checkpoint.in_background:
        _finish_checkpoint(run)
    run.clock.lap()
    run.where.enter("training")


def _finish_checkpoint(run: Run) -> None:
    """Wait until the checkpoint that was begun, if any, counts. A collective."""
    if run.saving is None:
        return
    saving, run.saving = run.saving, None
    seconds = saving.finish()
    if run.metrics is not None:
        run.metrics.checkpoint(saving.step, saving.seconds_blocked, seconds)


@torch.no_grad()
def validation_loss(run: Run) -> float | None:
    """Mean loss per supervised token over the whole validation set, in nats; None: given up, as a rank was asked to
    stop. A collective."""
    assert run.validation is not None
    world, optim = run.world, run.config.optim
    run.token_loss.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    batches = validation_batches(
        run.validation, run.config.data.seq_len, world.rank, world.size, optim.micro_batch_size
    )
    stop = False
    for micro in batches:
        (stop,) = map(bool, world.sum(run.stop.pending))
        if stop:
            break
        run.where.alive()
        total += run.model(micro.to(world.device)).double().cpu()
        count += micro.num_supervised
    run.token_loss.train()
    if stop:
        return None
    loss, tokens = world.sum(total.item(), count)
    return loss / max(tokens, 1)


def _stop(run: Run) -> NoReturn:
    """All ranks agreed to stop here: save what is not saved yet, and say how to go on."""
    if run.state.step > run.last_saved:
        save(run)
    _finish_checkpoint(run)
    run.where.enter("stopped")
    again = resume_command(run.directory.path, run.world.size)
    at = f"at step {run.state.step} of {run.total_steps}, saved" if run.state.step else "before the first step"
    raise Stopped(f"stopped on request {at}; continue with: {again}")
