"""The files beside full weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from distributed_ft.model.methods import full


def test_the_bases_generation_settings_are_kept_as_they_are(bases: Callable[..., Path], tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "model"
    shutil.copytree(bases("llama"), base)
    settings = json.dumps({"do_sample": False, "temperature": 0.5, "eos_token_id": 2})
    (base / "generation_config.json").write_text(settings)
    model = AutoModelForCausalLM.from_pretrained(base)
    saved.mkdir()
    full.write_description(model, str(base), torch.float32, saved)
    assert (saved / "generation_config.json").read_text() == settings
    assert {"config.json", "tokenizer.json"} <= {path.name for path in saved.iterdir()}
    (base / "generation_config.json").unlink()
    (saved / "generation_config.json").unlink()
    full.write_description(model, str(base), torch.float32, saved)
    assert not (saved / "generation_config.json").exists()
