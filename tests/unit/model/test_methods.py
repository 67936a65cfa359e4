"""What is trained: each method against PEFT, torch or its paper, and made beside a base that is not there yet."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from support.tiny import make_model
from torch import nn
from transformers import AutoModelForCausalLM

from distributed_ft.config.schema import (
    AdapterMethod,
    LoraMethod,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    PrefixMethod,
    PromptMethod,
    QloraMethod,
)
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.model import methods
from distributed_ft.model.load import build_empty, load_model
from distributed_ft.model.methods import bottleneck, pissa
from distributed_ft.model.shapes import num_parameters
from distributed_ft.parallel.update import clip_and_step
from distributed_ft.train.optim import make_optimizer

CPU = torch.device("cpu")
PROBE = torch.arange(3, 43)[None]
HOULSBY = AdapterMethod(type="adapter", adapter="houlsby", reduction_factor=4)
MADE_BESIDE_NOTHING: list[MethodConfig] = [
    LoraMethod(rank=4),
    LoraMethod(rank=4, target_modules="attention", rslora=True, lora_plus=2.0, dropout=0.1),
    PrefixMethod(type="prefix", num_virtual_tokens=3),
    PromptMethod(type="prompt", num_virtual_tokens=3),
    AdapterMethod(type="adapter", adapter="pfeiffer", reduction_factor=4),
    HOULSBY,
]


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", MADE_BESIDE_NOTHING, ids=lambda m: m.type)
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_adapters_beside_a_base_on_the_meta_device_are_those_made_beside_the_real_one(
    bases: Callable[..., Path], method: MethodConfig, storage: torch.dtype
) -> None:
    assert not methods.needs_weights(method)
    config = ModelConfig(base=str(bases("qwen2", tie_word_embeddings=True)))
    models = (load_model(config, storage, CPU), build_empty(config).to(storage))
    made = []
    for model in models:
        torch.manual_seed(5)
        made.append(methods.apply(model, method))
    real, empty = made
    assert trained(real)
    assert trained(real).keys() == trained(empty).keys()
    for name, tensor in trained(empty).items():
        assert (tensor.device, tensor.dtype) == (CPU, torch.float32), name
        torch.testing.assert_close(tensor, trained(real)[name], rtol=0, atol=0)
    frozen = {name for name, p in empty.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in real.named_parameters() if not p.requires_grad}
    assert all(empty.get_parameter(name).is_meta for name in frozen)
    assert num_parameters(empty) == num_parameters(real)


def test_methods_that_start_from_the_base_or_are_made_of_it_say_so() -> None:
    for method in (
        LoraMethod(dora=True),
        LoraMethod(init="pissa"),
        QloraMethod(type="qlora", dora=True),
        QloraMethod(type="qlora", quantization="int8"),
    ):
        assert methods.needs_weights(method)
    assert not methods.needs_weights(QloraMethod(type="qlora"))


def plain_loras(base: Path, folder: Path, method: LoraMethod, model: nn.Module, start: Path) -> Any:
    """The adapter written as a checkpoint writes it, read by PEFT on the base as it was."""
    tensors = {
        key: methods.as_saved(method, key, model.get_parameter(name).detach(), start).contiguous()
        for name, key in methods.saved_tensors(model, method)
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    methods.write_description(model, method, str(base), torch.float32, folder)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_pissa_takes_the_principal_part_out_of_the_base_and_is_saved_for_the_base_as_it_was(
    bases: Callable[..., Path], tmp_path: Path, options: dict[str, bool]
) -> None:
    base, method = bases("llama"), LoraMethod(rank=4, init="pissa", **options)
    model = methods.apply(load_model(ModelConfig(base=str(base), attention="eager"), torch.float32, CPU), method).eval()
    original = copy.deepcopy(model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.detach())
    before = model(input_ids=PROBE).logits
    pissa.write_start(model, tmp_path / "start", CPU)
    pissa.begin(model, tmp_path / "start")
    torch.testing.assert_close(model(input_ids=PROBE).logits, before, rtol=1e-4, atol=1e-4)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    left, values, right = torch.linalg.svd(original, full_matrices=False)
    exact = left[:, :4] * values[:4] @ right[:4]
    assert (product - exact).norm() < 0.05 * exact.norm()
    assert (original - product).norm() <= 1.001 * values[4:].norm(), "nothing is nearer in four dimensions"
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.05 * torch.randn_like(parameter)
    after = model(input_ids=PROBE).logits
    assert (after - before).abs().max() > 0.1
    plain = plain_loras(base, tmp_path / "model", method, model, tmp_path / "start")
    torch.testing.assert_close(plain(input_ids=PROBE).logits, after, rtol=1e-5, atol=1e-4)


def test_pissa_begins_where_the_run_began_bit_for_bit_whatever_is_drawn(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    config, method = ModelConfig(base=str(bases("llama"))), LoraMethod(rank=4, init="pissa")
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = methods.apply(load_model(config, torch.bfloat16, CPU), method)
        if seed == 1:
            pissa.write_start(model, tmp_path / "start", CPU)
        pissa.begin(model, tmp_path / "start")
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_pissa_beyond_the_rank_of_a_layer_is_refused(bases: Callable[..., Path], tmp_path: Path) -> None:
    model = methods.apply(
        load_model(ModelConfig(base=str(bases("llama"))), torch.float32, CPU), LoraMethod(rank=17, init="pissa")
    )
    with pytest.raises(ConfigError, match=r"^method\.rank: 17: .*k_proj has no more than 16 singular values"):
        pissa.write_start(model, tmp_path / "start", CPU)


def test_lora_plus_updates_as_pefts_optimizer_does() -> None:
    ours = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules="all-linear"))
    theirs = copy.deepcopy(ours)
    method, optim = LoraMethod(lora_plus=16.0), OptimConfig(lr=1e-3, weight_decay=0.1)
    mine = make_optimizer(ours, optim, lambda name: methods.lr_ratio(method, name))
    peft = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1, weight_decay=0.1
    )
    for step in range(3):
        for model in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
        clip_and_step(mine, None, 1e-3 / (step + 1), usable=True)
        for group in peft.param_groups:
            group["lr"] = group.setdefault("first", group["lr"]) / (step + 1)
        peft.step()
    for name, parameter in trained(ours).items():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adapter", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2"])
def test_bottlenecks_start_at_nothing_and_compute_what_their_papers_say(adapter: str, architecture: str) -> None:
    model = make_model(architecture).eval()
    before = model(input_ids=PROBE).logits
    method = AdapterMethod(type="adapter", adapter=adapter, reduction_factor=4)  # type: ignore[arg-type]
    adapted = methods.apply(copy.deepcopy(model), method).eval()
    torch.testing.assert_close(adapted(input_ids=PROBE).logits, before, rtol=0, atol=0)
    shapes = {tuple(p.shape) for p in trained(adapted).values()}
    assert shapes == {(8, 32), (8,), (32, 8), (32,)}
    places = {name.split(".bottleneck.")[0].split(".", 3)[-1] for name in trained(adapted)}
    assert len(places) == (2 if adapter == "houlsby" else 1)
    assert "mlp" in places


def test_a_bottleneck_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    for adapter, function in (("houlsby", nn.SiLU()), ("pfeiffer", nn.ReLU())):
        module = bottleneck.Bottleneck(6, 3, adapter)
        nn.init.normal_(module.up.weight)
        nn.init.normal_(module.up.bias)
        x = torch.randn(2, 5, 6)
        inner = function(x @ module.down.weight.T + module.down.bias)
        torch.testing.assert_close(module(x), x + inner @ module.up.weight.T + module.up.bias)
        assert module(x.bfloat16()).dtype == torch.bfloat16


def test_an_architecture_without_such_parts_has_no_bottlenecks() -> None:
    class Odd(nn.Module):
        _no_split_modules = ("Linear",)

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.config = make_model("llama").config

    with pytest.raises(ConfigError, match=r"^method\.adapter: pfeiffer: a Linear of this base has no parts"):
        methods.apply(Odd(), AdapterMethod(type="adapter"))  # type: ignore[arg-type]


def test_damaged_bottlenecks_are_refused_and_leave_the_model_as_it_was(tmp_path: Path) -> None:
    model = make_model("llama").eval()
    before = model(input_ids=PROBE).logits
    with pytest.raises(CheckpointError, match="not bottleneck adapters"):
        bottleneck.load(model, tmp_path)
    bottleneck.write_description(HOULSBY, "base", tmp_path)
    (tmp_path / bottleneck.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not bottleneck adapters"):
        bottleneck.load(model, tmp_path)
    save_file({"model.layers.0.mlp.bottleneck.up.bias": torch.zeros(32)}, tmp_path / bottleneck.WEIGHTS)
    with pytest.raises(CheckpointError, match="bottleneck adapters for another base"):
        bottleneck.load(model, tmp_path)
    torch.testing.assert_close(model(input_ids=PROBE).logits, before, rtol=0, atol=0)
    assert not any("bottleneck" in name for name, _ in model.named_modules())
    assert math.isfinite(float(before.sum()))
