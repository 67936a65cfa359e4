"""The support matrix agrees with the schema, and says why where something does not work."""

from pathlib import Path
from typing import Any, get_args

import pytest

from distributed_ft.config import checks, compat
from distributed_ft.config.schema import MethodConfig, ModelConfig, OptimConfig, RunConfig


def _config(**keys: Any) -> RunConfig:
    return RunConfig.model_validate_json(
        RunConfig.model_validate(
            {"name": "x", "model": {"base": "b"}, "data": {"train": "t"}, **keys}
        ).model_dump_json()
    )


def _choices(name: str) -> set[str]:
    return set(get_args(ModelConfig.model_fields[name].annotation))


def test_every_choice_of_the_schema_has_its_row() -> None:
    assert set(compat.DTYPES) == _choices("dtype")
    assert set(compat.ATTENTION) == _choices("attention")
    names = set(get_args(OptimConfig.model_fields["name"].annotation))
    assert set(compat.OPTIMIZERS) == set(compat.OPTIMIZER_DEVICES) == names
    assert all(set(row) == set(compat.COLUMNS) for row in compat.OPTIMIZERS.values())
    methods = {get_args(m.model_fields["type"].annotation)[0] for m in get_args(get_args(MethodConfig)[0])}
    working = {name for name, row in compat.METHODS.items() if row["one process"].works}
    assert working == methods | {"qlora int8", "qlora dora"}
    assert set(compat.LOADED_BY) == methods
    assert all(set(row) == set(compat.COLUMNS) for row in compat.METHODS.values())


def test_a_choice_that_is_planned_is_not_in_the_schema() -> None:
    for key, value in compat.PLANNED:
        section, field = key.split(".")
        with pytest.raises(ValueError):
            RunConfig.model_validate(
                {"name": "x", "model": {"base": "b"}, "data": {"train": "t"}, section: {field: value}}
            )


def test_flash_attention_on_a_cpu_is_refused_with_its_reason() -> None:
    config = _config(model={"base": "b", "attention": "flash_attention_2"})
    assert compat.device_problems(config, "cpu") == [
        "model.attention: flash_attention_2: FlashAttention has no CPU kernel; use attention: auto"
    ]
    assert compat.device_problems(config, "cuda") == []


def test_what_needs_a_gpu_is_refused_on_a_cpu_with_its_reason() -> None:
    config = _config(model={"base": "b", "attention": "flex"}, optim={"name": "paged_adamw_8bit"})
    assert compat.device_problems(config, "cpu") == [
        "model.attention: flex: flex_attention has no backward pass on a CPU; use attention: auto",
        "optim.name: paged_adamw_8bit: there is no GPU memory to page out of; use adamw_8bit",
    ]
    assert compat.device_problems(config, "cuda") == []


WORLDS: list[tuple[dict[str, Any], int, list[str]]] = [
    ({"type": "ddp"}, 4, []),
    ({"type": "ddp"}, 8, []),  # each takes a smaller pass: 16 = 8 × 2, micro_batch_size is 4
    ({"type": "fsdp"}, 2, []),
    ({"type": "fsdp", "dp_shard": 2, "dp_replicate": 2}, 4, []),
    (
        {"type": "fsdp", "dp_shard": 2, "dp_replicate": 2},
        1,
        [
            "strategy: dp_shard 2 × dp_replicate 2 is 4, but 1 process was asked for; "
            "give --nproc 4, or leave dp_shard out"
        ],
    ),
    (
        {"type": "fsdp", "dp_replicate": 2},
        1,
        [
            "strategy.dp_replicate: 2 does not divide the number of processes, 1; "
            "give a multiple of it as --nproc, or change it"
        ],
    ),
    (
        {"type": "ddp"},
        3,
        ["optim.global_batch_size: 16 is not a multiple of micro_batch_size 4 × 3 processes; make it 12 or 24"],
    ),
]


@pytest.mark.parametrize(("strategy", "world_size", "said"), WORLDS)
def test_a_world_that_does_not_fit_is_refused_with_the_remedy(
    strategy: dict[str, Any], world_size: int, said: list[str]
) -> None:
    assert compat.world_problems(_config(strategy=strategy), world_size) == said


def test_8_bit_weights_are_not_sharded() -> None:
    method = {"type": "qlora", "quantization": "int8"}
    for strategy in ({"type": "fsdp"}, {"type": "fsdp", "dp_replicate": 2}):
        said = compat.world_problems(_config(method=method, strategy=strategy), 4)
        assert said == [f"method: qlora int8: {compat.METHODS['qlora int8']['fsdp'].reason}"]
    assert compat.world_problems(_config(method=method), 4) == []
    assert compat.world_problems(_config(method={"type": "qlora"}, strategy={"type": "fsdp"}), 4) == []


def test_the_markdown_has_a_row_for_each_choice_and_a_note_for_each_reason() -> None:
    text = compat.markdown()
    assert "| `qlora int8` | yes | yes | no (2) | no (2) | no (2) | no (2) | no (2) |" in text
    flash = [line for line in text.splitlines() if line.startswith("| `flash_attention_2` | no (")]
    number = flash[0].split("(")[1].split(")")[0]
    assert f"\n{number}. FlashAttention has no CPU kernel; use attention: auto\n" in text


def test_prefix_tuning_does_not_recompute_layers(tmp_path: Path) -> None:
    keys = {"model": {"base": str(tmp_path), "gradient_checkpointing": "full"}}
    said = [p for p in checks.problems(_config(method={"type": "prefix"}, **keys), tmp_path) if p.key[0] == "model"]
    assert any("does not work with method: {type: prefix}" in p.message for p in said)
    others = checks.problems(_config(method={"type": "prompt"}, **keys), tmp_path)
    assert not any("gradient_checkpointing" in p.key for p in others)
