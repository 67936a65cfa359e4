"""A launcher may choose another strategy at each start, as far as the saved state allows."""

from pathlib import Path
from typing import Any

import pytest

from distributed_ft.artifacts import RunDirectory, write_json
from distributed_ft.config.schema import DataConfig, ModelConfig, RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.train.environment import refuse_other_state


def config(strategy: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "model": ModelConfig(base="b"), "data": DataConfig(train="t"), "strategy": strategy}
    )


def test_deepspeeds_state_and_ours_are_not_taken_for_one_another(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    zero, fsdp, ddp = ({"type": "deepspeed", "config": "zero.json"}, {"type": "fsdp"}, {"type": "ddp"})
    for strategy in (zero, fsdp, ddp):
        refuse_other_state(run, config(strategy))  # nothing was saved
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    refuse_other_state(run, config(zero))  # by a version that did not write it down
    write_json(run.environment, {"strategy": fsdp})
    refuse_other_state(run, config(ddp))
    with pytest.raises(ConfigError, match=r"^strategy\.type: deepspeed: the checkpoints .* were written under fsdp"):
        refuse_other_state(run, config(zero))
    write_json(run.environment, {"strategy": zero})
    refuse_other_state(run, config(zero))
    with pytest.raises(ConfigError, match=r"^strategy\.type: ddp: the checkpoints .* were written under deepspeed"):
        refuse_other_state(run, config(ddp))
