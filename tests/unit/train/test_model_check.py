"""Every way in which a file of weights can be wrong is found in it, by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distributed_ft.errors import CheckpointError
from distributed_ft.train.model_check import Stored, check_model

Tensors = dict[str, Tensor]
EXPECTED = {"a": Stored((2, 3), torch.float32), "b": Stored((4,), torch.bfloat16), "n": Stored((2,), torch.int64)}


def good() -> Tensors:
    return {name: torch.ones(stored.shape, dtype=stored.dtype) for name, stored in EXPECTED.items()}


def without(name: str) -> Tensors:
    return {key: value for key, value in good().items() if key != name}


DAMAGE: dict[str, tuple[Tensors, str]] = {
    "missing": (without("b"), "b: missing"),
    "foreign": ({**good(), "c": torch.ones(1)}, "w.safetensors: c: is not of this model"),
    "empty": ({**good(), "a": torch.empty(0)}, "w.safetensors: a: is empty; its shape should be [2, 3]"),
    "transposed": ({**good(), "a": torch.ones(3, 2)}, "a: its shape is [3, 2], and should be [2, 3]"),
    "other dtype": ({**good(), "a": torch.ones(2, 3).half()}, "a: its dtype is torch.float16, and should be"),
    "nan": ({**good(), "b": torch.full((4,), torch.nan).bfloat16()}, "b: holds numbers that are not finite"),
    "infinite": ({**good(), "a": torch.full((2, 3), torch.inf)}, "a: holds numbers that are not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_tensors_are_refused_by_file_and_name(tmp_path: Path, damage: str) -> None:
    tensors, said = DAMAGE[damage]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as raised:
        check_model(tmp_path, "w", EXPECTED)
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path))


def in_two_files(folder: Path, weight_map: dict[str, str] | None = None) -> None:
    save_file({"a": good()["a"]}, folder / "w-1.safetensors")
    save_file({"b": good()["b"], "n": good()["n"]}, folder / "w-2.safetensors")
    where = weight_map or {"a": "w-1.safetensors", "b": "w-2.safetensors", "n": "w-2.safetensors"}
    (folder / "w.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path) -> None:
    path.unlink()


def test_whole_files_pass_one_or_several(tmp_path: Path) -> None:
    save_file(good(), tmp_path / "w.safetensors")
    check_model(tmp_path, "w", EXPECTED)
    in_two_files(tmp_path)
    check_model(tmp_path, "w", EXPECTED)


@pytest.mark.parametrize("harm", [truncate, delete])
def test_a_damaged_file_among_several_is_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    in_two_files(tmp_path)
    harm(tmp_path / "w-2.safetensors")
    with pytest.raises(CheckpointError, match=r"w-2\.safetensors: cannot be read back"):
        check_model(tmp_path, "w", EXPECTED)


def test_an_index_that_leaves_a_tensor_out_is_refused_though_a_file_holds_it(tmp_path: Path) -> None:
    in_two_files(tmp_path, {"a": "w-1.safetensors", "b": "w-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"index\.json: n: missing"):
        check_model(tmp_path, "w", EXPECTED)
