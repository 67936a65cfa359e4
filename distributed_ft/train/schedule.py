"""Learning rate by step: a pure function, so that resume has nothing to restore."""

import math
from typing import assert_never

from distributed_ft.config.schema import OptimConfig


def warmup_steps(optim: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up: as set, or `warmup_ratio` of the run, rounded."""
    return optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_ratio * total_steps)


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of the update that makes step `step + 1` of `total_steps`.

    Linear warm-up from lr / warm-up to lr, then the schedule from lr towards `min_lr_ratio * lr`, which the step after
    the last one would have: no update is wasted on a rate of zero.
    wsd: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395), the decay over the last `decay_ratio` of all steps.
    Cosine: Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
    """
    warmup = warmup_steps(optim, total_steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match optim.schedule:
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case "linear":
            share = 1 - min(1.0, progress)
        case "constant":
            share = 1.0
        case "wsd":
            share = min(1.0, (1 - min(1.0, step / total_steps)) / optim.decay_ratio)
        case _:
            assert_never(optim.schedule)
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * share)
