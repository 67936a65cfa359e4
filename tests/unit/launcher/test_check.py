"""What `dft check` says of a run."""

import pytest

from distributed_ft.config.schema import OptimConfig
from launcher.check import _optimizer


@pytest.mark.parametrize(
    ("optim", "says"),
    [
        (OptimConfig(name="sgd", momentum=0.8), "sgd with momentum 0.8, "),
        (OptimConfig(name="adamw"), "adamw, "),
        (OptimConfig(name="adamw_8bit"), "adamw_8bit, "),
    ],
)
def test_momentum_is_said_of_the_optimizer_that_has_one(optim: OptimConfig, says: str) -> None:
    assert _optimizer(optim).startswith(says)
