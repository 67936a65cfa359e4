"""The main job, whole: `dft demo` learns the task and keeps the general skills; without replay it loses them, and says
so."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _demo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "launcher", "demo", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _report(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def test_the_demo_learns_the_task_and_keeps_the_general_skills(tmp_path: Path) -> None:
    output = _demo(tmp_path)
    report = _report(tmp_path / "runs" / "demo")
    assert report["task"]["base"]["score"] <= 0.10
    assert report["task"]["tuned"]["score"] >= 0.85
    assert report["task"]["tuned"]["n"] == 200
    assert report["forgetting"]["mean_drop"] <= 0.05
    assert report["forgetting"]["low"] <= report["forgetting"]["rate"] <= report["forgetting"]["high"]
    assert report["verdict"] == "ship"
    assert re.search(r"tensorboard --logdir \S+", output)
    _demo(tmp_path)  # finished: everything is found done
    assert _report(tmp_path / "runs" / "demo")["task"] == report["task"]


def test_without_replay_the_loss_is_found_and_called_by_its_name(tmp_path: Path) -> None:
    _demo(tmp_path, "--no-replay")
    run = tmp_path / "runs" / "demo-no-replay"
    report = _report(run)
    assert report["task"]["tuned"]["score"] >= 0.85
    assert report["forgetting"]["low"] > 0.05
    assert report["verdict"] == "do_not_ship"
    assert "catastrophic forgetting" in (run / "report.html").read_text().lower()
