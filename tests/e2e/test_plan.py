"""`dft plan`, as it is typed."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "llama_70b_qlora.yaml"


def planned(*arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """What it says, and the most that it had resident, in bytes."""
    argv = [sys.executable, "-m", "launcher", "plan", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(argv, cwd=REPOSITORY, env=env, text=True, capture_output=True, check=False)
    return result, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def test_70b_on_512_ranks_is_planned_in_less_than_4_gb() -> None:
    large = ("optim.global_batch_size=512", "--gpu", "h100:8", "--nodes", "64", "--patience", "0", "--json")
    result, resident = planned(str(CONFIG), *large)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["asked"]["nodes"] * plan["asked"]["gpus_per_node"] == 512
    assert 70e9 < plan["memory"]["parameters"] < 71e9
    assert plan["memory"]["parts"]["weights"] < 1.3e9  # a 512th of the packed ones, and all scales
    assert plan["asked"]["fits"]
    assert resident < 4e9


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_keys_that_do() -> None:
    large = ("optim.micro_batch_size=8", "optim.global_batch_size=64", "data.seq_len=8192")
    lean = ("model.base=meta-llama/Llama-3.2-1B", "model.gradient_checkpointing=none", "method={type: lora}")
    result, _ = planned(str(CONFIG), *large, *lean, "--gpu", "l4:8", "--patience", "1000")
    assert result.returncode == 0, result.stderr
    assert "DOES NOT FIT" in result.stdout
    assert "estimate, not measured" in result.stdout
    assert "1. model.gradient_checkpointing=full" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((str(CONFIG), "--gpu", "h1000:8"), "did you mean h100"),
        (("gone.yaml", "--gpu", "h100:8"), "gone.yaml: no such file"),
        ((str(CONFIG), "--gpu", "h100:8", "--prices", "gone.yaml"), "gone.yaml: no such file"),
        ((str(CONFIG), "--gpu", "h100:7"), "global_batch_size"),
    ],
)
def test_what_cannot_be_planned_is_one_message(arguments: tuple[str, ...], says: str) -> None:
    result, _ = planned(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
