"""Several adapters on one base: each answers as PEFT alone with it, and the base as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from distributed_ft.config.schema import AdapterMethod
from distributed_ft.errors import CheckpointError, ConfigError
from distributed_ft.model.adapters import Adapters
from distributed_ft.model.methods import bottleneck

PROBE = torch.arange(3, 43)[None]
CONFIGS: dict[str, Any] = {
    "one": lambda: LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    "other": lambda: LoraConfig(r=2, target_modules=["v_proj", "up_proj"], use_dora=True, init_lora_weights=False),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix too": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.fixture
def saved(bases: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        get_peft_model(plain(bases("llama")), config()).save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in CONFIGS}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROBE).logits


@pytest.mark.parametrize("names", [("one", "other"), ("prefix", "prefix too"), ("prompt",)])
def test_each_answers_as_alone_and_the_base_as_before(
    bases: Callable[..., Path], saved: dict[str, Path], names: tuple[str, ...]
) -> None:
    base = bases("llama")
    expected = {name: logits(PeftModel.from_pretrained(plain(base), saved[name]).eval()) for name in names}
    adapters = Adapters(str(base), torch.float32)
    of_base = logits(plain(base))
    for name in names:
        adapters.load(name, saved[name])
        assert torch.equal(logits(adapters.model), of_base), "loading puts nothing on"
    assert adapters.names() == names
    for name in (*names, *reversed(names)):
        adapters.use(name)
        assert adapters.active == name
        torch.testing.assert_close(logits(adapters.model), expected[name], rtol=1e-6, atol=1e-6)
        adapters.use(None)
        assert torch.equal(logits(adapters.model), of_base)
    assert not any(p.requires_grad for name, p in adapters.model.named_parameters() if "lora" in name)


def test_what_does_not_fit_is_one_error_and_changes_nothing(
    bases: Callable[..., Path], saved: dict[str, Path], tmp_path: Path
) -> None:
    wide = bases("llama", hidden_size=64)
    get_peft_model(plain(wide), CONFIGS["one"]()).save_pretrained(tmp_path / "wide")
    (tmp_path / "bottleneck").mkdir()
    bottleneck.write_description(AdapterMethod(type="adapter"), "base", tmp_path / "bottleneck")
    adapters = Adapters(str(bases("llama")), torch.float32)
    of_base = logits(adapters.model)
    for attempt in range(2):
        for name, path, says in (
            ("wide", tmp_path / "wide", "an adapter for another base than"),
            ("nothing", tmp_path / "nothing", "no adapter of PEFT is here$"),
            ("bottleneck", tmp_path / "bottleneck", r"bottleneck adapters are no PEFT: .*bottleneck\.load"),
        ):
            with pytest.raises(CheckpointError, match=says):
                adapters.load(name, path)
        if not attempt:
            assert adapters.names() == ()
            assert torch.equal(logits(adapters.model), of_base)
            adapters.load("one", saved["one"])
            adapters.use("one")
            of_one = logits(adapters.model)
    with pytest.raises(CheckpointError, match="a PREFIX_TUNING adapter cannot stand beside LORA ones"):
        adapters.load("prefix", saved["prefix"])
    for name, says in (("one", "is taken"), ("a.b", "has no dot"), ("", "is not empty")):
        with pytest.raises(ConfigError, match=says):
            adapters.load(name, saved["one"])
    with pytest.raises(ConfigError, match="'two': no such adapter is loaded; loaded: one"):
        adapters.use("two")
    assert adapters.names() == ("one",)
    assert torch.equal(logits(adapters.model), of_one)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Adapters(str(tmp_path / "none"), torch.float32)
