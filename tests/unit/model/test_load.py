"""Reading a base: what is chosen for it, and what is said when it cannot be used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distributed_ft.config.schema import LoraMethod, ModelConfig
from distributed_ft.errors import ConfigError
from distributed_ft.model import methods
from distributed_ft.model.attention import PACKED_SDPA
from distributed_ft.model.load import build_empty, load_model, load_tokenizer, weights_problem
from distributed_ft.model.shapes import num_parameters

CPU = torch.device("cpu")


def test_auto_takes_eager_attention_where_scores_are_capped(bases: Callable[..., Path]) -> None:
    """sdpa knows no cap: it would train another model than the base is."""
    for architecture, expected in (("llama", PACKED_SDPA), ("mistral", PACKED_SDPA), ("gemma2", "eager")):
        model = load_model(ModelConfig(base=str(bases(architecture))), torch.float32, CPU)
        assert model.config._attn_implementation == expected


def test_sdpa_is_refused_where_scores_are_capped(bases: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention: Gemma2ForCausalLM .* use auto or eager"):
        load_model(ModelConfig(base=str(bases("gemma2")), attention="sdpa"), torch.float32, CPU)


def test_a_base_that_is_missing_or_broken_is_one_message_about_model_base(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for read in (load_tokenizer, lambda b: load_model(ModelConfig(base=b), torch.float32, CPU)):
        with pytest.raises(ConfigError, match=r"^model\.base: .*empty"):
            read(str(empty))
    with pytest.raises(ConfigError, match=r"^model\.base: .*empty"):
        build_empty(ModelConfig(base=str(empty)))
    assert weights_problem(str(empty)) == f"{empty}: no *.safetensors file"


def test_a_half_written_weights_file_is_found_from_its_header(bases: Callable[..., Path], tmp_path: Path) -> None:
    whole = (bases("llama") / "model.safetensors").read_bytes()
    assert weights_problem(str(bases("llama"))) is None
    for kept in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:kept])
        problem = weights_problem(str(tmp_path))
        assert problem is not None, kept
        assert "model.safetensors" in problem


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b'{"a": {"dtype": "F32"}}']
)
def test_a_damaged_header_is_said_and_no_error_of_ours(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    problem = weights_problem(str(tmp_path))
    assert problem is not None
    assert problem.startswith(f"{tmp_path}/model.safetensors: damaged safetensors header; ")


def test_a_missing_file_of_a_sharded_base_is_named(bases: Callable[..., Path], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(bases("llama")).save_pretrained(tmp_path, max_shard_size="40kB")
    assert weights_problem(str(tmp_path)) is None
    index = tmp_path / "model.safetensors.index.json"
    first, second, *_ = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    (tmp_path / second).unlink()
    says = f"missing, and {index.name} names it; download it again"
    assert weights_problem(str(tmp_path)) == f"{tmp_path / second}: {says}"
    (tmp_path / first).unlink()
    assert weights_problem(str(tmp_path)) == f"{tmp_path / first} (and 1 more): {says}"
    index.write_text("[]")
    assert weights_problem(str(tmp_path)) == (
        f"{index}: not an index of safetensors files; download it again, or save the model there again"
    )


def test_weights_that_are_missing_or_of_another_shape_are_named(bases: Callable[..., Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors .* not in its files \(model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(base=str(base)), torch.float32, CPU)


def test_the_shapes_alone_count_the_same_parameters_as_the_loaded_model(bases: Callable[..., Path]) -> None:
    config = ModelConfig(base=str(bases("qwen2", tie_word_embeddings=True)))
    method = LoraMethod(rank=4)
    loaded = methods.apply(load_model(config, torch.float32, CPU), method)
    with torch.device("meta"):
        shapes = methods.apply(build_empty(config), method)
    assert num_parameters(shapes) == num_parameters(loaded)
    assert all(p.device.type == "meta" for p in shapes.parameters())


def test_target_modules_that_match_nothing_are_named_with_a_suggestion(bases: Callable[..., Path]) -> None:
    model = build_empty(ModelConfig(base=str(bases("llama"))))
    with pytest.raises(ConfigError, match=r"method\.target_modules: 'q_prj' .* did you mean 'q_proj'"):
        methods.apply(model, LoraMethod(target_modules=("v_proj", "q_prj")))


@pytest.mark.parametrize(("architecture", "block"), [("llama", "self_attn"), ("gpt_neox", "attention")])
def test_attention_targets_every_linear_layer_in_it_and_no_other(
    bases: Callable[..., Path], architecture: str, block: str
) -> None:
    model = methods.apply(
        build_empty(ModelConfig(base=str(bases(architecture)))), LoraMethod(target_modules="attention")
    )
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    linear = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lora_" not in name}
    assert adapted == {n.removesuffix(".base_layer") for n in linear if f".{block}." in n}
    assert len(adapted) < len(linear)


def test_rslora_scales_by_the_root_of_the_rank(bases: Callable[..., Path]) -> None:
    for rslora, scaling in ((False, 2.0), (True, 8.0)):
        method = LoraMethod(rank=16, alpha=32, rslora=rslora)
        model = methods.apply(build_empty(ModelConfig(base=str(bases("llama")))), method)
        layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
        assert layer.scaling["default"] == scaling


def test_adapters_are_fp32_over_a_bf16_base_which_stays_frozen(bases: Callable[..., Path]) -> None:
    model = methods.apply(load_model(ModelConfig(base=str(bases("llama"))), torch.bfloat16, CPU), LoraMethod(rank=4))
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert not any("lm_head" in name for name, p in model.named_parameters() if p.requires_grad)
