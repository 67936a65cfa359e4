"""The base that the 8B benchmark makes is one that a run can read, and has the size that it says."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.train_8b import FULL_SIZE, QUICK, config_of, in_files, make_base
from distributed_ft.model.load import build_model, load_model, weights_problem

CPU = torch.device("cpu")


def test_the_base_is_read_tensor_by_tensor_and_by_transformers(tmp_path: Path) -> None:
    base = tmp_path / "base"
    written = make_base(base, QUICK)
    files = sorted(base.glob("*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 1.2 * QUICK.file_bytes  # two of its tensors are no smaller
    assert weights_problem(str(base)) is None
    config = config_of(tmp_path, "lora", QUICK).model
    _, content = build_model(config, torch.bfloat16, CPU)
    assert content is not None, "streamed"
    model = load_model(config, torch.bfloat16, CPU)  # refuses a base that lacks a tensor
    assert written == sum(p.numel() * p.element_size() for p in model.parameters())
    stored = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            stored |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    assert stored == {"BF16"}
    head = model.get_output_embeddings().weight
    assert float(head.detach().float().std()) == pytest.approx(0.02, rel=0.02)


def test_the_full_size_is_that_of_llama_3_1_8b_in_files_of_2_gb() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**FULL_SIZE.shape, tie_word_embeddings=False, dtype="bfloat16"))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 8_030_261_248
    sizes = [sum(2 * shapes[name].numel() for name in names) for names in in_files(shapes, FULL_SIZE.file_bytes)]
    assert max(sizes) <= 2 * 10**9
    assert len(sizes) == 9
