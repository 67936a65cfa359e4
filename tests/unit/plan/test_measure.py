"""What is planned is what torch's allocator gives out; and a few layers stand for many."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.plan_worker import allocated, train
from distributed_ft.config.load import load
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.parallel.world import World
from distributed_ft.plan import depth
from distributed_ft.plan.answer import plan
from distributed_ft.plan.base import architecture
from distributed_ft.plan.measure import figures, measure

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def base(directory: Path, layers: int, weights: bool = False) -> Path:
    config = AutoConfig.for_model("llama", vocab_size=512, num_hidden_layers=layers, **SHAPE)
    config.save_pretrained(directory)
    if weights:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def run(base: Path, method: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "planned",
            "model": {"base": str(base), "dtype": "fp32", **sections.get("model", {})},
            "method": method,
            "data": {"train": "none.jsonl", "seq_len": 64},
            "strategy": sections.get("strategy", {"type": "ddp"}),
            "optim": {"micro_batch_size": 2, "global_batch_size": 16, **sections.get("optim", {})},
        }
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_plan_of_one_process_is_what_the_allocator_gives_out(tmp_path: Path, method: str) -> None:
    config = run(base(tmp_path / "base", layers=2, weights=True), {"type": method})
    planned = measure(config, 1, on_gpu=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(config, World(0, 1, 0, torch.device("cpu")))
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    assert planned.training == pytest.approx(allocated(tmp_path / "trace.json"), rel=0.02)


@pytest.mark.parametrize(
    ("method", "ranks", "sections"),
    [
        ("lora", 1, {"model": {"gradient_checkpointing": "full"}}),
        ("full", 4, {"strategy": {"type": "fsdp"}}),
        pytest.param(
            "qlora", 2, {"strategy": {"type": "fsdp", "reshard_after_forward": False}}, marks=pytest.mark.slow
        ),
        pytest.param("full", 1, {"model": {"gradient_checkpointing": "selective"}}, marks=pytest.mark.slow),
    ],
)
def test_two_depths_drawn_out_are_the_whole_depth(
    tmp_path: Path, method: str, ranks: int, sections: dict[str, Any]
) -> None:
    config = run(base(tmp_path, layers=9), {"type": method}, **sections)
    depths = depth.enough(config.model)
    assert depths is not None
    assert depths.second < 9
    drawn_out, whole = (measure(config, ranks, whole=whole) for whole in (False, True))
    assert drawn_out.parts == pytest.approx(whole.parts, rel=1e-3, abs=4096)
    assert drawn_out.host == pytest.approx(whole.host, rel=1e-3, abs=4096)
    assert (drawn_out.loading, drawn_out.saving) == pytest.approx((whole.loading, whole.saving), rel=1e-2)
    assert (drawn_out.trained, drawn_out.parameters) == (whole.trained, whole.parameters)
    assert drawn_out.layers
    assert not whole.layers


def test_memory_falls_with_the_world_size_and_copies_do_not_share(tmp_path: Path) -> None:
    held = {}
    for name, ranks, strategy in (
        ("2", 2, {"type": "fsdp"}),
        ("4", 4, {"type": "fsdp"}),
        ("2 x 2", 4, {"type": "fsdp", "dp_replicate": 2}),
        ("ddp", 2, {"type": "ddp"}),
    ):
        parts = measure(run(base(tmp_path, layers=2), {"type": "full"}, strategy=strategy), ranks).parts
        held[name] = parts["weights"] + parts["optimizer"]
    assert held["4"] == pytest.approx(held["2"] / 2, rel=0.05)
    assert held["2 x 2"] == pytest.approx(held["2"], rel=0.01)
    assert held["ddp"] == pytest.approx(held["2"] * 2, rel=0.05)


def test_what_is_offloaded_lies_in_host_memory(tmp_path: Path) -> None:
    here = base(tmp_path, layers=2)
    kept = measure(run(here, {"type": "full"}, strategy={"type": "fsdp"}), 2)
    offloaded = measure(run(here, {"type": "full"}, strategy={"type": "fsdp", "cpu_offload": True}), 2)
    assert offloaded.parts["weights"] == offloaded.parts["optimizer"] == 0
    assert offloaded.host["training"] >= kept.parts["weights"] + kept.parts["optimizer"]
    assert kept.host["training"] == 0


def test_a_planned_step_is_that_of_full_sequences_and_forgets_nothing_of_torch(tmp_path: Path) -> None:
    reducer = torch._C._distributed_c10d.Reducer._rebuild_buckets
    figures(run(base(tmp_path, layers=2), {"type": "lora"}), 2, on_gpu=True)
    assert torch._C._distributed_c10d.Reducer._rebuild_buckets is reducer
    assert not torch.distributed.is_initialized()
    assert torch.ones(2).sum().item() == 2.0


def test_a_shape_that_is_nowhere_is_said_with_those_that_are_shipped() -> None:
    with pytest.raises(ConfigError, match=r"nobody/nothing.*none of those whose shape is shipped: .*Llama-3.1-70B"):
        architecture("nobody/nothing")


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        architecture(str(tmp_path))


@pytest.mark.parametrize("strategy", ["deepspeed", "launcher"])
def test_a_strategy_that_cannot_be_planned_says_what_to_plan_instead(strategy: str) -> None:
    configs = Path(__file__).parents[3] / "configs"
    knobs = f", config: {configs}/deepspeed/zero3.json" if strategy == "deepspeed" else ""
    setting = f"{{type: {strategy}{knobs}}}"
    loaded = load(configs / "lora.yaml", [f"strategy={setting}"])
    with pytest.raises(ConfigError, match=r"strategy\.type=fsdp"):
        plan(loaded, "h100:2", 1, None, 0)
