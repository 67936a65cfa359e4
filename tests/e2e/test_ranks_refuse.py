"""What only the ranks can know is refused by them: one message, exit code 2, nothing trained."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny import CONFIGS, make_config, prepare_run, write_rows

INT8 = {"type": "qlora", "rank": 4, "alpha": 8, "quantization": "int8"}
BY_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "RANK": "0", "WORLD_SIZE": "2"}
FSDP = {**BY_ACCELERATE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {**BY_ACCELERATE, "ACCELERATE_USE_DEEPSPEED": "true"}
ZERO |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(CONFIGS / "deepspeed" / "zero2.json")}


def one_rank(path: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "distributed_ft.train", str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("sections", "environment", "says"),
    [
        pytest.param({"method": INT8}, FSDP, "method: qlora int8: its scales lie outside ", marks=pytest.mark.slow),
        ({"optim": {"name": "adamw_8bit"}}, ZERO, "optim.name: adamw_8bit: ZeRO flattens and partitions "),
    ],
)
def test_a_launcher_that_chooses_what_cannot_work(
    tmp_path: Path,
    bases: Callable[..., Path],
    sections: dict[str, dict[str, str]],
    environment: dict[str, str],
    says: str,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    run = prepare_run(make_config(bases("llama"), rows, tmp_path, strategy={"type": "launcher"}, **sections), 2)
    code, lines = one_rank(run.path, environment)
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"dft: error: {says}")
    assert not run.checkpoints.exists()


def test_a_mistyped_run_directory_is_not_made(tmp_path: Path) -> None:
    code, lines = one_rank(tmp_path / "rnu", {})
    assert (code, len(lines)) == (2, 1), lines
    assert "rnu: not a run directory (no config.json)" in lines[0]
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_ctrl_c_ends_a_verification_and_not_only_its_world(tmp_path: Path) -> None:
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        verify = subprocess.Popen([sys.executable, "-m", "launcher", "matrix", "--verify"], stderr=stderr)
    try:
        while b"6 trainings" not in errors.read_bytes():
            assert verify.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            verify.wait(3)
        verify.send_signal(signal.SIGINT)
        assert verify.wait(60) == 130
    finally:
        verify.kill()
    assert errors.read_text().count("verify: ") == 1
    assert errors.read_text().endswith("\ndft: interrupted\n")
