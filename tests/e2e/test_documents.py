"""The guides are true: their commands are run, one after the other, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from distributed_ft.config.schema import FINDING_IDS

ROOT = Path(__file__).parents[2]


def commands(document: Path) -> str:
    """All ```bash blocks of a page."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", document.read_text(), flags=re.M | re.S))


def run(page: str, folder: Path) -> str:
    """What the commands of a page print, in an empty folder."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = "set -euo pipefail\n" + commands(ROOT / "docs" / page)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guide_to_your_own_data_works_from_a_csv_to_a_verdict(tmp_path: Path) -> None:
    printed = run("your-own-data.md", tmp_path)
    assert "every part of this run works" in printed
    assert "not a bit differs" in printed
    assert "2 of 2 runs are done" in printed
    assert "triage-lr3e-3" in printed.split("process-hours")[-1]
    assert (tmp_path / "runs/triage/report.html").stat().st_size > 10_000
    model = tmp_path / "runs/triage" / "checkpoints" / (tmp_path / "runs/triage/LATEST").read_text().strip() / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in model.iterdir()}


def test_the_guide_to_data_works_from_raw_rows_to_a_preview(tmp_path: Path) -> None:
    printed = run("data.md", tmp_path)
    assert "groups   14" in printed
    assert "groups   15" in printed
    assert "[[hardware<|im_end|>]]" in printed
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert [f["id"] for f in audit["findings"]] == ["pii"]
    assert audit["findings"][0]["waived"]


def test_the_guide_to_data_lists_every_id_of_a_finding() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert [name for name in FINDING_IDS if f"`{name}" not in page and f"`.{name.split('.')[-1]}`" not in page] == []
