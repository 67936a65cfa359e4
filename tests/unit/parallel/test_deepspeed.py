"""What DeepSpeed says against its own knobs is said before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import CONFIGS, make_config, write_rows

from distributed_ft.errors import ConfigError
from distributed_ft.parallel.deepspeed import knob_problems
from distributed_ft.train import preflight


def test_the_shipped_knobs_are_right() -> None:
    for file in sorted((CONFIGS / "deepspeed").glob("*.json")):
        assert knob_problems(str(file)) == []


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        (
            {"stage": 3, "stage3_param_persistance_threshold": 0},
            r"\.stage3_param_persistance_threshold: DeepSpeed .*; did you mean 'stage3_param_persistence_threshold'\?",
        ),
        ({"stage": 2, "offload_optimizer": {"device": "gpu"}}, r"\.offload_optimizer\.device: Input should be"),
        ({"stage": 2, "reduce_bucket_size": "large"}, r"\.reduce_bucket_size: Input should be a valid integer"),
    ],
)
def test_a_knob_that_deepspeed_refuses_is_a_config_error_of_preflight(
    tmp_path: Path, bases: Callable[..., Path], knobs: dict[str, Any], expected: str
) -> None:
    file = tmp_path / "knobs.json"
    file.write_text(json.dumps({"zero_optimization": knobs}))
    strategy = {"type": "deepspeed", "config": str(file)}
    config = make_config(bases("llama"), write_rows(tmp_path / "rows.jsonl", 8), tmp_path, strategy=strategy)
    with pytest.raises(ConfigError, match=rf"^strategy\.config: .*knobs\.json: zero_optimization{expected}"):
        preflight.check(config, 1, fresh=True)
