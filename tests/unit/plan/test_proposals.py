"""What is proposed can be written: `dft train` would take it."""

import time
from typing import Any

import pytest

from distributed_ft.config.paths import ASSETS
from distributed_ft.config.schema import RunConfig
from distributed_ft.plan.measure import Memory
from distributed_ft.plan.proposals import proposals

LARGE = Memory({"weights": 10**12}, "step", 0, 0, {}, 1, 1)
BASE = str(ASSETS / "architectures" / "meta-llama" / "Llama-3.2-1B")


def proposed(world_size: int, fits: bool = False, **sections: Any) -> list[dict[str, Any]]:
    """The changes that come to be measured, where nothing fits, or all does."""
    tree = {"name": "run", "model": {"base": BASE}, "data": {"train": "rows.jsonl"}, **sections}
    tree["optim"] = {"global_batch_size": 16, "micro_batch_size": 2, "max_steps": 3, **tree.get("optim", {})}
    config = RunConfig.model_validate(tree)
    found, _ = proposals(config, LARGE, world_size, lambda _: LARGE, lambda _: fits, time.monotonic() + 60)
    return [p.changes for p in found]


def test_savings_are_added_up_until_there_are_no_more() -> None:
    found = proposed(2, method={"type": "lora"}, strategy={"type": "ddp"})
    assert list(found[-1]) == ["model.gradient_checkpointing", "strategy", "optim.micro_batch_size", "method.type"]
    assert found[-1]["strategy"]["cpu_offload"] is True


@pytest.mark.parametrize(
    ("method", "never"),
    [
        ({"type": "qlora", "quantization": "int8"}, "strategy"),  # its scales are sharded by nobody
        ({"type": "prefix"}, "model.gradient_checkpointing"),
        ({"type": "lora", "init": "pissa"}, "method.type"),
    ],
)
def test_what_the_run_would_be_refused_for_is_not_proposed(method: dict[str, Any], never: str) -> None:
    assert not any(never in changes for changes in proposed(2, method=method, strategy={"type": "ddp"}))


def test_where_it_fits_larger_micro_batches_and_less_recomputation_are_tried() -> None:
    found = proposed(1, fits=True, method={"type": "lora"}, model={"base": BASE, "gradient_checkpointing": "full"})
    assert {"model.gradient_checkpointing": "none"} in found
    assert {"optim.micro_batch_size": 16} in found
