"""What a node finds on its GPUs."""

from pathlib import Path

import pytest
import torch

from distributed_ft.artifacts import RunDirectory
from distributed_ft.train.node_look import look

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_gpus_that_compute_what_the_cpu_does_have_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    (tmp_path / "config.json").write_text("{}")
    count = torch.cuda.device_count()
    found = look(RunDirectory(tmp_path), tmp_path / "token", count, None, lambda _: None)
    assert (found.kind, found.devices, found.faults, found.directory) == ("GPU", count, (), "")
