"""What a process goes without, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_ft.config.paths import ASSETS

PROGRAM = """
import json, sys
from distributed_ft import imports
from distributed_ft.config.schema import RunConfig
config = RunConfig.model_validate_json(sys.argv[1])
imports.leave_out([config], *sys.argv[2:])
import peft
from distributed_ft.model.methods import lora
there = ("bitsandbytes", "torch._inductor.compile_fx", "scipy.optimize")
print(json.dumps({name: sys.modules.get(name) is not None for name in there}))
"""


def imported(*others: str, base: str = str(ASSETS / "base"), **sections: Any) -> dict[str, bool]:
    tree = {"name": "run", "model": {"base": base}, "data": {"train": "rows.jsonl"}, **sections}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(tree), *others], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def test_a_run_that_quantises_nothing_goes_without_what_is_for_that() -> None:
    assert not any(imported("scipy", method={"type": "lora"}).values())


def test_a_base_that_is_quantised_already_or_not_known_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"load_in_4bit": true}}')
    assert imported(base=str(tmp_path))["bitsandbytes"]
    assert imported(base="somebody/some-model")["bitsandbytes"]


@pytest.mark.parametrize("sections", [{"method": {"type": "qlora"}}, {"optim": {"name": "adamw_8bit"}}])
def test_a_run_that_needs_it_has_it(sections: dict[str, Any]) -> None:
    assert imported(**sections)["bitsandbytes"]
