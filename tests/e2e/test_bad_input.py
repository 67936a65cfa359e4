"""What can be known before a model is loaded is refused then: one message, exit code 2, and no run directory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.commands import write_run_yaml
from support.tiny import write_rows
from transformers import AutoModelForCausalLM

from launcher.cli import main

REPOSITORY = Path(__file__).parents[2]
# Runs `dft` with each line of its input in turn, in a process that finds none of the packages in HIDDEN.
HIDING = """
import os, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in os.environ["HIDDEN"].split()
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
from launcher.cli import main
for line in sys.stdin:
    print(main(line.split()), file=sys.stderr)
"""
MESH = {"type": "fsdp", "dp_shard": 2, "dp_replicate": 2}
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("an unknown target module", {"method": {"target_modules": ["q_prok"]}}, 1, "'q_prok' matches no linear layer"),
    ("rank 0", {"method": {"rank": 0}}, 1, "method.rank: 0 must be greater than 0"),
    ("qlora in fp16", {"method": {"type": "qlora"}, "model": {"dtype": "fp16"}}, 1, "model.dtype: 'fp16': not support"),
    ("fp4", {"method": {"type": "qlora", "quantization": "fp4"}}, 1, "method.quantization: 'fp4' is not a choice"),
    ("3 ranks for a 2x2 mesh", {"strategy": MESH}, 3, "strategy: dp_shard 2 × dp_replicate 2 is 4, but 3 processes"),
    (
        "launcher, and none",
        {"strategy": {"type": "launcher"}},
        1,
        "strategy.type: launcher: the strategy is taken from",
    ),
]


@pytest.fixture
def make_yaml(tmp_path: Path, bases: Callable[..., Path]) -> Callable[..., Path]:
    rows = write_rows(tmp_path / "rows.jsonl", 40)

    def make(name: str = "run", base: Path | None = None, **sections: Mapping[str, Any]) -> Path:
        return write_run_yaml(tmp_path, base or bases("llama"), rows, name, **sections)

    return make


def assert_refused(capsys: pytest.CaptureFixture[str], run_yaml: Path, nproc: int, says: str) -> None:
    capsys.readouterr()  # what the libraries printed as the base was made
    assert main(["train", str(run_yaml), "--nproc", str(nproc)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dft: error: "), said
    assert said.count("\n") == 1, said
    assert says in said
    assert not (run_yaml.parent / "runs" / "run").exists()


@pytest.mark.parametrize(("sections", "nproc", "says"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_a_bad_setting(
    make_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str], sections: dict[str, Any], nproc: int, says: str
) -> None:
    batch = {"global_batch_size": 4 * nproc}
    assert_refused(capsys, make_yaml(optim=batch, **sections), nproc, says)


def without_weights(base: Path) -> str:
    for file in base.glob("*.safetensors"):
        file.unlink()
    return "lacks weights (*.safetensors)"


def corrupt_header(base: Path) -> str:
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(8)
        file.write(b"\xff\xff")
    return f"model.base: {base}/model.safetensors: damaged safetensors header"


def truncated(base: Path) -> str:
    os.truncate(base / "model.safetensors", 30_000)
    return "30000 bytes, "


def missing_shard(base: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="40kB")
    last = max(base.glob("*.safetensors"))
    last.unlink()
    return f"model.base: {last}: missing, and model.safetensors.index.json names it"


@pytest.mark.parametrize("damage", [without_weights, corrupt_header, truncated, missing_shard])
def test_a_bad_base(
    make_yaml: Callable[..., Path],
    bases: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], str],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    assert_refused(capsys, make_yaml(base=base), 1, damage(base))


def test_an_optional_package_that_is_missing(make_yaml: Callable[..., Path], tmp_path: Path) -> None:
    zero = tmp_path / "zero.json"
    zero.write_text('{"zero_optimization": {"stage": 2}}')
    asked = {
        "bitsandbytes": make_yaml("bitsandbytes", method={"type": "qlora"}),
        "deepspeed": make_yaml("deepspeed", strategy={"type": "deepspeed", "config": str(zero)}),
        "flash-attn": make_yaml("flash-attn", model={"attention": "flash_attention_2", "dtype": "bf16"}),
    }
    lines = [f"train {run_yaml} --nproc 2\n" for run_yaml in asked.values()]
    said = hiding("bitsandbytes deepspeed flash_attn", *lines)
    for package, remedy in zip(asked, ("lora", "strategy: {type: fsdp}", "attention: auto"), strict=True):
        assert f"{package} is not installed; `pip install {package}`, or use {remedy}\n" in said
    assert said.splitlines().count("2") == 3
    accelerate = hiding("accelerate", f"train {make_yaml()} --nproc 2 --launcher accelerate\n")
    assert accelerate == (
        "dft: error: --launcher: accelerate is not installed; `pip install accelerate`, or use torchrun\n2\n"
    )
    assert not [*(tmp_path / "runs").glob("[!.]*")]


def hiding(packages: str, *lines: str) -> str:
    """Standard error of `dft` where the packages are not installed, each time followed by the exit code."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HIDDEN": packages}
    done = subprocess.run(
        [sys.executable, "-c", HIDING],
        input="".join(lines),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
