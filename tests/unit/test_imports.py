"""What a process goes without, in a process of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest

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


def imported(*others: str, **sections: Any) -> dict[str, bool]:
    tree = {"name": "run", "model": {"base": "base"}, "data": {"train": "rows.jsonl"}, **sections}
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(tree), *others], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def test_a_run_that_quantises_nothing_goes_without_what_is_for_that() -> None:
    assert not any(imported("scipy", method={"type": "lora"}).values())


@pytest.mark.parametrize("sections", [{"method": {"type": "qlora"}}, {"optim": {"name": "adamw_8bit"}}])
def test_a_run_that_needs_it_has_it(sections: dict[str, Any]) -> None:
    assert imported(**sections)["bitsandbytes"]
