"""DeepSpeed's JSON holds engine knobs; what run.yaml says stands in run.yaml alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.config import deepspeed
from distributed_ft.config.load import load
from distributed_ft.config.schema import OptimConfig
from distributed_ft.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "configs" / "deepspeed"
ZERO = {"zero_optimization": {"stage": 2}}


def wrong(knobs: Any) -> list[str]:
    return list(deepspeed.problems(knobs if isinstance(knobs, str) else json.dumps(knobs, indent=1)))


@pytest.mark.parametrize(("name", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_the_shipped_files_are_right(name: str, stage: int) -> None:
    knobs = deepspeed.read(SHIPPED / f"{name}.json")
    assert deepspeed.stage(knobs) == stage
    assert list(knobs) == ["zero_optimization"], "engine knobs only"


def test_every_shipped_file_is_what_deepspeed_itself_takes() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # it forbids keys that it does not know

    for file in SHIPPED.glob("*.json"):
        knobs = deepspeed.read(file)
        assert DeepSpeedZeroConfig(**knobs["zero_optimization"]).stage == deepspeed.stage(knobs)


@pytest.mark.parametrize("key", sorted(deepspeed.OWNED))
def test_a_key_that_run_yaml_owns_is_named_with_both_places(key: str) -> None:
    (problem,) = wrong({**ZERO, key: 1})
    assert problem == f"line 5: {key}: run.yaml says this: {deepspeed.OWNED[key]}; delete it here"


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ([], 'needs {"zero_optimization": {"stage": 1, 2 or 3, …}}'),
        ({"zero_optimization": {}}, "zero_optimization.stage: None; 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage: 0; 1, 2 or 3 (without ZeRO, use strategy"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: True; 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "line 4: offload_param.device: nvme: not supported: what resume needs is not read back; use cpu",
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "its second copy of the weights is stale"),
        ({**ZERO, "wall_clock_breakdwn": True}, "no engine knob; did you mean 'wall_clock_breakdown'?"),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}},
            'line 4: reduce_bucket_size: "auto": nobody',
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(knobs: Any, expected: str) -> None:
    (problem,) = wrong(knobs)
    assert expected in problem


def test_run_yaml_and_its_json_are_judged_together(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "knobs.json").write_text(json.dumps({**ZERO, "gradient_clipping": 1.0}))
    text = "name: x\nmodel: {base: shipped:base}\ndata: {train: train.jsonl}\n"
    (tmp_path / "run.yaml").write_text(text + "strategy: {type: deepspeed, config: knobs.json}\n")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "run.yaml")
    assert str(raised.value) == (
        f"{tmp_path}/run.yaml:4: strategy.config: knobs.json: line 1: gradient_clipping: run.yaml says this: "
        "optim.max_grad_norm; delete it here"
    )
    (tmp_path / "knobs.json").write_text(json.dumps(ZERO))
    strategy = load(tmp_path / "run.yaml").config.strategy
    assert strategy.model_dump() == {"type": "deepspeed", "config": str(tmp_path / "knobs.json")}
    (tmp_path / "knobs.json").unlink()
    with pytest.raises(ConfigError, match=r"strategy\.config: .*knobs\.json: no such file"):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_engine_is_given_the_knobs_and_run_yamls_part_in_its_words(clip: float | None) -> None:
    given = deepspeed.engine_config({**ZERO, "dump_state": False}, OptimConfig(max_grad_norm=clip))
    assert given["gradient_clipping"] == (clip or 0.0)
    assert given["zero_optimization"] == {"stage": 2}
    assert given["dump_state"] is False
    assert given["train_micro_batch_size_per_gpu"] == given["gradient_accumulation_steps"] == 1
