"""A folder with the least that a run.yaml needs: a base directory, data and a schema file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.config.load import load
from distributed_ft.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (base / name).write_text("{}")
    for name in ("train.jsonl", "more.jsonl", "test.jsonl", "answer.schema.json"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


@pytest.fixture
def run_yaml(folder: Path) -> Callable[[str], Path]:
    """Writes a run.yaml; MINIMAL in the text stands for three lines with the required keys."""

    def write(text: str) -> Path:
        path = folder / "run.yaml"
        path.write_text(text.replace("MINIMAL", "name: x\nmodel: {base: ./base}\ndata: {train: train.jsonl}"))
        return path

    return write


@pytest.fixture
def problems(run_yaml: Callable[[str], Path]) -> Callable[..., list[str]]:
    """The lines of the error that a run.yaml gives, without the folder's name."""

    def lines(text: str, *overrides: str) -> list[str]:
        path = run_yaml(text)
        with pytest.raises(ConfigError) as caught:
            load(path, overrides)
        return str(caught.value).replace(f"{path.parent}/", "").splitlines()

    return lines
