"""Command lines: what is started, and what people are told to type."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed_ft.config.schema import RunConfig
from launcher.plan import Start, accelerate_config, launcher_command, launcher_plan, resume_command

FILES = Path(__file__).parents[3] / "configs" / "accelerate"
RUN = Path("runs/my run")


@pytest.mark.parametrize(
    ("start", "typed", "again"),
    [
        (Start(1), "torchrun --standalone --nproc-per-node 1 -m", ""),
        (Start(2, "torchrun"), "torchrun --standalone --nproc-per-node 2 -m", " --nproc 2 --launcher torchrun"),
        (
            Start(2, "accelerate"),
            "accelerate launch --config_file 'runs/my run/accelerate.json' --num_processes 2 -m",
            " --nproc 2 --launcher accelerate",
        ),
        (
            Start(4, "accelerate", Path("mine.yaml")),
            "accelerate launch --config_file mine.yaml --num_processes 4 -m",
            " --nproc 4 --launcher accelerate --accelerate-config mine.yaml",
        ),
    ],
)
def test_the_commands_that_people_are_told_to_type(start: Start, typed: str, again: str) -> None:
    assert launcher_command(RUN, start) == f"{typed} distributed_ft.train 'runs/my run'"
    assert resume_command(RUN, start) == f"dft train 'runs/my run'{again}"


def test_what_is_started_is_what_people_type() -> None:
    plan = launcher_plan(RUN, Start(2, "torchrun"), "dft train again", Path("/tmp/roll"))
    (process,) = plan.processes
    assert process.argv[1:] == (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--signals-to-handle", "SIGQUIT", "--monitor-interval", "0.5"),
        *("-m", "distributed_ft.train", "runs/my run"),
    )
    assert process.env["DFT_WORLD_SIZE"] == "2"
    assert process.env["DFT_AGAIN"] == "dft train again"
    assert process.env["DFT_ROLL"] == "/tmp/roll"
    assert (plan.num_ranks, plan.roll) == (2, Path("/tmp/roll"))


@pytest.mark.parametrize(
    ("file", "strategy"),
    [
        ("ddp", {"type": "ddp"}),
        ("fsdp", {"type": "fsdp"}),
        ("zero2", {"type": "deepspeed", "config": "configs/deepspeed/zero2.json"}),
        ("zero3", {"type": "deepspeed", "config": "configs/deepspeed/zero3.json"}),
    ],
)
def test_a_shipped_file_is_the_one_that_we_would_make(file: str, strategy: dict[str, Any]) -> None:
    tree = {"name": "x", "model": {"base": "b", "dtype": "fp32"}, "data": {"train": "t"}, "strategy": strategy}
    made = accelerate_config(RunConfig.model_validate_json(json.dumps(tree)), 2)
    assert made.pop("mixed_precision") == "no"  # the shipped ones leave it to run.yaml
    assert made == yaml.safe_load((FILES / f"{file}.yaml").read_text())
