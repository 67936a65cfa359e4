"""The learning rate of a step, against transformers' schedules and by hand."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from distributed_ft.config.schema import OptimConfig
from distributed_ft.train.schedule import learning_rate, warmup_steps

REFERENCE = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear_schedule_with_warmup}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_after_the_warmup_rates_are_those_of_transformers(schedule: str, warmup: int) -> None:
    total = 40
    optim = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    reference = REFERENCE[schedule](optimizer, warmup, total)
    for step in range(total):
        if step >= warmup:
            assert learning_rate(optim, step, total) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


def test_the_warmup_rises_linearly_from_its_first_share_and_wastes_no_step_on_zero() -> None:
    optim = OptimConfig(lr=1.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(optim, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_rates_end_near_the_floor_and_never_below_it() -> None:
    for schedule in ("cosine", "linear"):
        optim = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=0, min_lr_ratio=0.1)
        rates = [learning_rate(optim, step, 100) for step in range(100)]
        assert rates[0] == 1.0
        assert rates == sorted(rates, reverse=True)
        assert 0.1 < rates[-1] < 0.12
        assert learning_rate(optim, 150, 100) == pytest.approx(0.1)


def test_warmup_is_a_share_of_the_run_unless_its_steps_are_given() -> None:
    assert warmup_steps(OptimConfig(warmup_ratio=0.1), 64) == 6
    assert warmup_steps(OptimConfig(warmup_ratio=0.1, warmup_steps=0), 64) == 0
    assert warmup_steps(OptimConfig(warmup_ratio=0.0), 64) == 0


def test_wsd_is_stable_and_decays_over_the_last_share_of_the_run() -> None:
    optim = OptimConfig(lr=1.0, schedule="wsd", warmup_steps=2, decay_ratio=0.4, min_lr_ratio=0.5)
    assert [learning_rate(optim, step, 10) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625]
    )


@pytest.mark.parametrize("total", [1, 2, 3])
def test_every_step_of_a_very_short_run_has_a_rate(total: int) -> None:
    for ratio in (0.0, 0.1, 0.9):
        optim = OptimConfig(lr=1.0, warmup_ratio=ratio)
        assert all(0 < learning_rate(optim, step, total) <= 1 for step in range(total))
    beyond = OptimConfig(lr=1.0, warmup_steps=10)
    assert [learning_rate(beyond, step, total) for step in range(total)] == [(s + 1) / 10 for s in range(total)]
