"""What accelerate's file says, by accelerate's own code, against run.yaml."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from distributed_ft.config.launched import launched, settled
from distributed_ft.config.schema import DdpStrategy, DeepspeedStrategy, FsdpStrategy, RunConfig
from distributed_ft.errors import ConfigError
from launcher.plan import accelerate_config

FILES = Path(__file__).parents[3] / "configs" / "accelerate"


def environment(file: Path | None, *flags: str) -> dict[str, str]:
    """The variables that a rank of `accelerate launch --config_file FILE` finds."""
    chosen = ["--config_file", str(file)] if file is not None else []
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*chosen, *flags, "script.py"]))
    args.deepspeed_fields_from_accelerate_config = ""
    if args.use_deepspeed:
        found = prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.multi_gpu:
        found = prepare_multi_gpu_env(args)
    else:
        return prepare_simple_launcher_cmd_env(args)[1]
    return {**found, "RANK": "0", "WORLD_SIZE": str(args.num_processes)}  # what torch's launcher, beneath it, sets


def changed(folder: Path, file: str, **keys: Any) -> Path:
    """A shipped file with some keys changed; those of a section are added to it."""
    tree = yaml.safe_load((FILES / file).read_text())
    for key, value in keys.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def config(**keys: Any) -> RunConfig:
    tree = {"name": "x", "model": {"base": "b", "dtype": "fp32"}, "data": {"train": "t"}, **keys}
    return RunConfig.model_validate_json(json.dumps(tree))


def refusal(run: RunConfig, environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settled(run, environ)
    return str(caught.value).splitlines()


# --- what it says --------------------------------------------------------------------------------------------------


def test_each_shipped_file_says_its_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILES.parents[1])
    said = {file.stem: launched(environment(file)) for file in FILES.glob("*.yaml")}
    assert {name: found and found.strategy for name, found in said.items()} == {
        "ddp": DdpStrategy(),
        "fsdp": FsdpStrategy(type="fsdp"),
        "zero2": DeepspeedStrategy(type="deepspeed", config=str(FILES.parent / "deepspeed/zero2.json")),
        "zero3": DeepspeedStrategy(type="deepspeed", config=str(FILES.parent / "deepspeed/zero3.json")),
    }


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "ddp"},
        {"type": "fsdp"},
        {"type": "fsdp", "reshard_after_forward": False, "cpu_offload": True},
        {"type": "fsdp", "dp_replicate": 2},
        {"type": "fsdp", "dp_replicate": 2, "dp_shard": 2},
        {"type": "deepspeed", "config": "zero.json"},
    ],
)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_file_made_from_a_run_agrees_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: dict[str, Any], dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    run = config(model={"base": "b", "dtype": dtype}, strategy=strategy)
    file = tmp_path / "accelerate.json"
    file.write_text(json.dumps(accelerate_config(run, 4)))
    environ = environment(file)
    assert settled(run, environ) == run
    left_to_it = settled(run.model_copy(update={"strategy": config(strategy={"type": "launcher"}).strategy}), environ)
    assert left_to_it.strategy.type == run.strategy.type


@pytest.mark.parametrize(
    ("environ", "meaning"),
    [
        ({}, "no launcher"),
        ({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, "torchrun"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "true", "DFT_RENDEZVOUS": "x"}, "left over"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate, one process"),
    ],
)
def test_who_says_nothing_of_the_strategy_leaves_it_to_the_run(environ: dict[str, str], meaning: str) -> None:
    assert launched(environ) is None, meaning
    run = config(strategy={"type": "fsdp"})
    assert settled(run, environ) is run
    (message,) = refusal(config(strategy={"type": "launcher"}), environ)
    assert message.startswith("strategy.type: launcher: ")
    ours = "takes what the file of `accelerate launch` says, and this process was not started by it"
    assert (ours in message) == (meaning != "accelerate, one process")


def test_accelerate_that_names_no_strategy_cannot_choose_it(tmp_path: Path) -> None:
    alone = changed(tmp_path, "ddp.yaml", distributed_type="NO", num_processes=1)
    (message,) = refusal(config(strategy={"type": "launcher"}), environment(alone))
    assert message.startswith("strategy.type: launcher: accelerate started one process and names no strategy; ")


def test_one_process_where_two_were_asked_for_is_an_error() -> None:
    (message,) = refusal(config(), environment(None, "--cpu", "--num_processes", "2", "--num_machines", "1"))
    assert message.startswith("several processes were asked for, but accelerate started one")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"fsdp_config": {"fsdp_version": 1}}, "fsdp_version: 1 in accelerate's file (FSDP_VERSION)"),
        ({"mixed_precision": "fp16"}, "mixed_precision: fp16 in accelerate's file"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_backend: INDUCTOR in accelerate's file"),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "parallelism_config_tp_size: 2 in accelerate's"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    (message,) = refusal(config(strategy={"type": "launcher"}), environment(changed(tmp_path, "fsdp.yaml", **keys)))
    assert message.startswith(says)
    assert "is not supported here; " in message


# --- whether it agrees ---------------------------------------------------------------------------------------------


def test_every_contradiction_is_said_with_both_places(tmp_path: Path) -> None:
    file = changed(
        tmp_path,
        "fsdp.yaml",
        mixed_precision="bf16",
        fsdp_config={
            "fsdp_reshard_after_forward": False,
            "fsdp_offload_params": True,
            "fsdp_activation_checkpointing": True,
        },
    )
    theirs = "in accelerate's file"
    dtype = f'model.dtype: "fp32" in run.yaml, but "bf16" {theirs} (mixed_precision; ACCELERATE_MIXED_PRECISION)'
    checkpointing = (
        f'model.gradient_checkpointing: "none" in run.yaml, but "full" {theirs} '
        "(fsdp_activation_checkpointing; FSDP_ACTIVATION_CHECKPOINTING)"
    )
    agree, or_launcher = "make them agree", "make them agree, or write strategy: {type: launcher}"
    assert refusal(config(strategy={"type": "fsdp"}), environment(file)) == [
        f"strategy.reshard_after_forward: true in run.yaml, but false {theirs} "
        f"(fsdp_reshard_after_forward; FSDP_RESHARD_AFTER_FORWARD); {or_launcher}",
        f"strategy.cpu_offload: false in run.yaml, but true {theirs} "
        f"(fsdp_offload_params; FSDP_OFFLOAD_PARAMS); {or_launcher}",
        f"{dtype}; {agree}",
        f"{checkpointing}; {agree}",
    ]
    assert refusal(config(strategy={"type": "ddp"}), environment(file)) == [
        f'strategy.type: "ddp" in run.yaml, but "fsdp" {theirs} '
        f"(distributed_type: FSDP; ACCELERATE_USE_FSDP); {or_launcher}",
        f"{dtype}; {agree}",
        f"{checkpointing}; {agree}",
    ]
    assert refusal(config(strategy={"type": "launcher"}), environment(file)) == [
        f"{dtype}; {agree}",
        f"{checkpointing}; {agree}",
    ]


def test_ddp_and_a_file_that_only_starts_processes_agree_and_fsdp_does_not() -> None:
    environ = environment(FILES / "ddp.yaml")
    assert settled(config(), environ) == config()
    (message,) = refusal(config(strategy={"type": "fsdp"}), environ)
    assert message.startswith('strategy.type: "fsdp" in run.yaml, but "ddp" in accelerate\'s file')


def test_a_mesh_is_held_against_the_files(tmp_path: Path) -> None:
    mesh = {"parallelism_config_dp_replicate_size": 2, "parallelism_config_dp_shard_size": 2}
    environ = environment(changed(tmp_path, "fsdp.yaml", num_processes=4, parallelism_config=mesh))
    assert settled(config(strategy={"type": "launcher"}), environ).strategy == FsdpStrategy(
        type="fsdp", dp_shard=2, dp_replicate=2
    )
    said = refusal(config(strategy={"type": "fsdp"}), environ)
    assert [line.split(" in accelerate")[0] for line in said] == [
        "strategy.dp_replicate: 1 in run.yaml, but 2",
        "strategy.dp_shard: 4 in run.yaml, but 2",
    ]


def test_a_deepspeed_file_is_held_against_the_json_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, stage in (("mine", 2), ("same", 2), ("other", 3)):
        Path(f"{name}.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    run = config(strategy={"type": "deepspeed", "config": str(tmp_path / "mine.json")})

    def said(**keys: Any) -> dict[str, str]:
        return environment(changed(tmp_path, "zero2.yaml", deepspeed_config=keys))

    assert settled(run, said(deepspeed_config_file="same.json", zero_stage=2, offload_param_device="none")) == run
    assert settled(run, said(deepspeed_config_file="same.json", gradient_clipping=1.0)) == run
    assert settled(run, said(deepspeed_config_file="same.json", gradient_accumulation_steps=2)) == run
    (message,) = refusal(run, said(deepspeed_config_file="other.json"))
    assert f'strategy.config: "{tmp_path}/mine.json" (which says otherwise of zero_optimization) in run.yaml' in message
    assert f'"{tmp_path}/other.json" in accelerate\'s file (deepspeed_config_file; ' in message
    (message,) = refusal(run, said(deepspeed_config_file="same.json", zero_stage=3))
    assert message.startswith(f"zero_optimization.stage: 2 in {tmp_path}/mine.json")
    said_of_training = said(deepspeed_config_file="same.json", gradient_clipping=0.5, gradient_accumulation_steps=4)
    assert [line.split(";")[0] for line in refusal(run, said_of_training)] == [
        "optim.global_batch_size: 16 on 2 × micro_batch_size 4, which makes 2 passes, in run.yaml, but 4 in "
        "accelerate's file (gradient_accumulation_steps",
        "optim.max_grad_norm: 1.0 in run.yaml, but 0.5 in accelerate's file (gradient_clipping",
    ]
    (message,) = refusal(run, said(deepspeed_config_file="gone.json"))
    assert message == f"strategy.config: {tmp_path}/gone.json: cannot be read (No such file or directory)"


def test_a_deepspeed_file_without_its_json_cannot_be_the_choice(tmp_path: Path) -> None:
    environ = environment(
        changed(tmp_path, "zero2.yaml", deepspeed_config={"deepspeed_config_file": None, "zero_stage": 2})
    )
    (message,) = refusal(config(strategy={"type": "launcher"}), environ)
    assert message.startswith(
        "strategy.type: launcher: accelerate's file names no deepspeed_config_file; name one there"
    )
