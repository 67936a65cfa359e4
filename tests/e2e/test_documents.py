"""The guides are true: their commands are run, one after the other, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(document: Path) -> str:
    """All ```bash blocks of a page."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", document.read_text(), flags=re.M | re.S))


@pytest.mark.parametrize("page", ["your-own-data.md"])
def test_the_commands_of_a_guide_work_in_an_empty_folder(page: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = "set -euo pipefail\n" + commands(ROOT / "docs" / page)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every part of this run works" in done.stdout
    assert "not a bit differs" in done.stdout
    assert "2 of 2 runs are done" in done.stdout
    assert "triage-lr3e-3" in done.stdout.split("process-hours")[-1]
    assert (tmp_path / "runs/triage/report.html").stat().st_size > 10_000
    model = tmp_path / "runs/triage" / "checkpoints" / (tmp_path / "runs/triage/LATEST").read_text().strip() / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in model.iterdir()}
