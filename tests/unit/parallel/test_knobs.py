"""DeepSpeed's JSON is read by DeepSpeed itself before any process starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import CONFIGS

from distributed_ft.config.schema import OptimConfig
from distributed_ft.errors import ConfigError
from distributed_ft.parallel.deepspeed import check_knobs


@pytest.mark.parametrize("file", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_every_shipped_file_is_read(file: Path) -> None:
    check_knobs(str(file), OptimConfig())


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        (
            {"zero_optimization": {"stage": 2, "overlap_com": True}},
            ["overlap_com: DeepSpeed knows no such knob; did you mean 'overlap_comm'?"],
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "x", "offload_optimizer": {"device": "disk"}}},
            [
                "reduce_bucket_size: 'x': Input should be a valid integer, unable to parse string as an integer",
                "offload_optimizer.device: 'disk': Input should be 'none', 'cpu' or 'nvme'",
            ],
        ),
        (
            {"zero_optimization": {"stage": 1}, "comms_logger": {"enabld": True}},
            ["enabld: DeepSpeed knows no such knob; delete it"],
        ),
        (
            {"zero_optimization": {"stage": 1}, "communication_data_type": "fp99"},
            ["Invalid communication_data_type. Supported data types: ['fp16', 'bf16', 'fp32']. Got: fp99"],
        ),
    ],
)
def test_a_knob_that_deepspeed_refuses_is_one_line(tmp_path: Path, knobs: dict[str, Any], says: list[str]) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(knobs))
    with pytest.raises(ConfigError) as caught:
        check_knobs(str(file), OptimConfig())
    assert str(caught.value).splitlines() == [f"strategy.config: {file}: {line}" for line in says]
