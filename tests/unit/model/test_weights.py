"""A model that is built without memory and filled is the model that transformers loads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import ARCHITECTURES, make_base
from transformers import PreTrainedModel

from distributed_ft.config.schema import LoraMethod, ModelConfig, QloraMethod
from distributed_ft.model import methods
from distributed_ft.model.load import build_model, load_model
from distributed_ft.model.quantized import quantization
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.world import World

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)


def filled(base: Path, dtype: torch.dtype, bits: object = None) -> PreTrainedModel:
    model, content = build_model(ModelConfig(base=str(base)), dtype, CPU, bits)  # type: ignore[arg-type]
    assert content is not None, "streamed"
    assert all(p.is_meta for p in model.parameters())
    fill(model, content, ALONE, CPU)
    return model


def assert_same(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(m, kind)()) for m in (model, expected))
        assert list(ours) == list(theirs)  # tied ones are listed once
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name
            assert ours[name].requires_grad == tensor.requires_grad, name
    assert model.training == expected.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "mixtral"])
def test_every_tensor_is_what_transformers_loads(
    bases: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    base = bases(architecture)
    assert_same(filled(base, dtype), load_model(ModelConfig(base=str(base)), dtype, CPU))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_and_sharded_files(tmp_path: Path, bases: Callable[..., Path], tied: bool) -> None:
    whole = load_model(ModelConfig(base=str(bases("qwen2", tie_word_embeddings=tied))), torch.float32, CPU)
    whole.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = filled(tmp_path, torch.float32)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert_same(model, whole)


def test_a_base_saved_without_its_head_is_read_by_its_own_names(tmp_path: Path, bases: Callable[..., Path]) -> None:
    base = bases("qwen2", tie_word_embeddings=True)
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    save_file(
        {k.removeprefix("model."): v for k, v in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    assert_same(filled(tmp_path, torch.float32), load_model(ModelConfig(base=str(base)), torch.float32, CPU))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_weights_quantised_one_by_one_have_the_bits_that_transformers_gives_them(
    bases: Callable[..., Path], compute: torch.dtype, double_quant: bool
) -> None:
    base = bases("llama")
    bits = quantization(QloraMethod(type="qlora", double_quant=double_quant), compute)
    model, expected = filled(base, compute, bits), load_model(ModelConfig(base=str(base)), compute, CPU, bits)
    assert_same(model, expected)
    for (name, module), (_, theirs) in zip(model.named_modules(), expected.named_modules(), strict=True):
        assert getattr(module, "quant_state", None) == getattr(theirs, "quant_state", None), name
        if hasattr(theirs, "quant_state"):
            assert module.weight.quant_state is module.quant_state
    assert getattr(model, "is_loaded_in_4bit", False)


def test_adapters_come_out_the_same_over_a_model_without_memory(bases: Callable[..., Path]) -> None:
    base = bases("llama")
    made = []
    for model in (
        build_model(ModelConfig(base=str(base)), torch.bfloat16, CPU)[0],
        load_model(ModelConfig(base=str(base)), torch.bfloat16, CPU),
    ):
        torch.manual_seed(3)
        adapted = methods.apply(model, LoraMethod(rank=4))
        made.append({n: p for n, p in adapted.named_parameters() if p.requires_grad})
    assert list(made[0]) == list(made[1])
    for name, tensor in made[1].items():
        assert made[0][name].dtype == torch.float32
        assert torch.equal(made[0][name], tensor), name


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_weight_that_is_stored_twice_is_tied_only_if_it_is_the_same(
    tmp_path: Path, bases: Callable[..., Path], equal: bool
) -> None:
    base = bases("qwen2", tie_word_embeddings=True)
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embeddings.clone() if equal else embeddings + 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model, content = build_model(ModelConfig(base=str(tmp_path)), torch.float32, CPU)
    assert (content is not None) == equal
    if content is not None:
        fill(model, content, ALONE, CPU)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == equal
    assert_same(model, load_model(ModelConfig(base=str(tmp_path)), torch.float32, CPU))


def test_what_transformers_makes_out_of_several_tensors_is_left_to_it(tmp_path: Path) -> None:
    base = make_base(tmp_path, "mixtral")  # its experts lie apart in the files, and in one tensor in the model
    model, content = build_model(ModelConfig(base=str(base)), torch.float32, CPU)
    assert content is None
    assert_same(model, load_model(ModelConfig(base=str(base)), torch.float32, CPU))
