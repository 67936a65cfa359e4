"""docs/slurm.md is true: its commands are run, in their order, on a Slurm that they bring up and down themselves."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "slurm.md"
FOLLOW_SECONDS = 3  # of what a person ends by Ctrl-C
# `make` as it is, with the Python that runs the tests in the place of a virtual environment made for it
BEGIN = 'set -euo pipefail\nmake() { command make -o venv BIN="$TEST_BIN" "$@"; }\n'


def script(page: str) -> str:
    """All ```bash blocks; what follows a log is ended after some seconds."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, flags=re.M | re.S))
    followed = rf"timeout {FOLLOW_SECONDS} \1 || [ $? = 124 ]"
    return BEGIN + re.sub(r"^(dft logs .* -f)\b.*$", followed, blocks, flags=re.M)


@pytest.fixture
def state() -> Iterator[Path]:
    """Where the page's cluster lies; nothing of it is left running when the test ends."""
    folder = Path(tempfile.mkdtemp(prefix="dft-slurm-", dir="/tmp"))  # short, as sockets are in it
    try:
        yield folder
    finally:
        Cluster(folder).down()
        shutil.rmtree(folder)


@pytest.mark.slurm
def test_the_commands_of_the_guide_work_one_after_the_other(state: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "tests", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "DFT_"))}
    environment = {
        **clean,
        "TEST_BIN": str(Path(sys.executable).parent),
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), clean.get("PYTHONPATH", "")]),
        "DFT_SLURM_STATE": str(state),
    }
    done = subprocess.run(
        ["bash", "-c", script(PAGE.read_text())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "#SBATCH --nodes=2" in done.stdout
    assert "its evaluation is job" in done.stdout
    assert "cancelled job" in done.stdout
    assert "identical" in done.stdout
    assert "the same run within rounding" in done.stdout
    assert "export DFT_LAUNCHER=accelerate" in done.stdout
    assert (tmp_path / "runs" / "tickets" / "report.html").exists()
    steps = {"tickets": 60, "moved": 60} | dict.fromkeys(
        ("chain", "by-hand", "mixed", "tickets-rank4", "tickets-rank8"), 20
    )
    latest = {name: (tmp_path / "runs" / name / "LATEST").read_text() for name in steps}
    assert latest == {name: f"step-{step:08d}\n" for name, step in steps.items()}
    assert not Cluster(state).running
