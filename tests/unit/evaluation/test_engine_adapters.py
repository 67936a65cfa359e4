"""Adapters that are not LoRA, in the engine: virtual tokens as PEFT generates with them, and bottlenecks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from distributed_ft.config.schema import AdapterMethod
from distributed_ft.data.chat import render_prompt
from distributed_ft.data.examples import Message
from distributed_ft.errors import CheckpointError, EvaluationError
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.task import Generate
from distributed_ft.model.methods import bottleneck

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
SHOWN = (Message("user", "who is Bob?"), Message("assistant", "Bob"))
WORDS = ("cat", "a request of more words, to force padding", "x", "who is Ann?", "cat")
REQUESTS = [Generate(w, (Message("user", w),), 12) for w in WORDS]
REQUESTS += [Generate(f"shown {w}", (*SHOWN, Message("user", w)), 12) for w in WORDS]  # with a beginning in common
NUM_VIRTUAL = 5


@pytest.fixture(scope="module", params=["llama", "mistral, sliding window"])
def random_base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Untrained, with logits far enough apart that rounding decides nothing."""
    torch.manual_seed(0)
    settings = {**SIZES, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0}
    settings["initializer_range"] = 0.2
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**settings))
    else:
        model = MistralForCausalLM(MistralConfig(**settings, sliding_window=16))
    folder = tmp_path_factory.mktemp("random")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_virtual(base: Path, kind: str, folder: Path) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind]
    get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL)).save_pretrained(folder)
    return folder


def plain_answers(base: Path, adapter: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Each request alone, by PEFT's own generation."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    end = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    answers = []
    for request in REQUESTS:
        prompt = torch.tensor([render_prompt(tokenizer, request.messages)])
        settings = {"max_new_tokens": request.max_new_tokens, "do_sample": False, "eos_token_id": end}
        everything = torch.ones_like(prompt)
        out = model.generate(input_ids=prompt, attention_mask=everything, pad_token_id=0, **settings)
        new = out[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_answers_with_virtual_tokens_are_those_of_peft_generate_and_the_base_comes_back(
    random_base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    adapter = save_virtual(random_base, kind, tmp_path)
    engine = TransformersEngine(str(random_base), "fp32", batch_size=4)
    engine.use(None)
    of_base = engine.generate(REQUESTS)
    engine.use(adapter)
    answers = engine.generate(REQUESTS)
    assert answers == plain_answers(random_base, adapter, tokenizer)
    assert answers != of_base
    engine.use(None)
    assert engine.generate(REQUESTS) == of_base


def test_bf16_answers_with_virtual_tokens(base: Path, tmp_path: Path) -> None:
    for kind in ("prefix", "prompt"):
        engine = TransformersEngine(str(base), "bf16", batch_size=4)
        engine.use(save_virtual(base, kind, tmp_path / kind))
        assert len(engine.generate(REQUESTS)) == len(REQUESTS)


def test_virtual_tokens_take_room_from_the_context(base: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(str(base), "fp32", batch_size=4)
    text = "q" * (256 - len(engine.prompt((Message("user", "q"),))) - 2)
    engine.use(None)
    assert len(engine.prompt((Message("user", text),))) < 256
    engine.generate([Generate("long", (Message("user", text),), 4)])
    engine.use(save_virtual(base, "prefix", tmp_path))
    with pytest.raises(EvaluationError, match="the model takes 251"):
        engine.generate([Generate("long", (Message("user", text),), 4)])


@pytest.mark.parametrize(
    ("kind", "change"),
    [("prefix", {"num_hidden_layers": 3}), ("prefix", {"hidden_size": 64}), ("prompt", {"hidden_size": 64})],
)
def test_virtual_tokens_for_another_base_are_refused(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str, change: dict[str, int]
) -> None:
    settings = {**SIZES, **change, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(tmp_path / "other")
    engine = TransformersEngine(str(base), "fp32", batch_size=4)
    with pytest.raises(CheckpointError, match="for another base"):
        engine.use(save_virtual(tmp_path / "other", kind, tmp_path / "adapter"))
    engine.use(None)
    engine.generate(REQUESTS)


@pytest.fixture
def save_bottleneck(tmp_path: Path) -> Callable[[Path], Path]:
    def save(base: Path) -> Path:
        from safetensors.torch import save_file

        method = AdapterMethod(type="adapter", adapter="houlsby", reduction_factor=4)
        model = bottleneck.apply(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), method)
        torch.manual_seed(3)
        tensors = {key: torch.randn(model.get_parameter(name).shape) for name, key in bottleneck.saved_tensors(model)}
        folder = tmp_path / "bottleneck"
        folder.mkdir()
        save_file(tensors, folder / bottleneck.WEIGHTS)
        bottleneck.write_description(method, str(base), folder)
        return folder

    return save


def test_bottlenecks_are_put_on_and_taken_off_a_base_that_stays_loaded(
    random_base: Path, save_bottleneck: Callable[[Path], Path]
) -> None:
    adapter = save_bottleneck(random_base)
    engine = TransformersEngine(str(random_base), "fp32", batch_size=4)
    engine.use(None)
    of_base, model = engine.generate(REQUESTS), engine._loaded
    engine.use(adapter)
    assert engine.generate(REQUESTS) != of_base
    engine.use(None)
    assert engine._loaded is model
    assert engine.generate(REQUESTS) == of_base
    assert not any("bottleneck" in name for name, _ in model.named_modules())


def test_bottlenecks_for_another_base_are_refused(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, save_bottleneck: Callable[[Path], Path]
) -> None:
    settings = {**SIZES, "num_hidden_layers": 3, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(tmp_path / "other")
    engine = TransformersEngine(str(base), "fp32", batch_size=4)
    with pytest.raises(CheckpointError, match="for another base"):
        engine.use(save_bottleneck(tmp_path / "other"))
    engine.use(None)
    engine.generate(REQUESTS)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_log_probabilities_behind_virtual_tokens_are_pefts(random_base: Path, tmp_path: Path, kind: str) -> None:
    weights = save_virtual(random_base, kind, tmp_path / kind)
    engine = TransformersEngine(str(random_base), "fp32", batch_size=4)
    engine.use(weights)
    ids = engine.tokenizer("a request of more words, longer than the window of one of them")["input_ids"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32), weights)
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits
    expected = logits[0, -len(ids) : -1].log_softmax(-1)
    torch.testing.assert_close(engine.log_probabilities(ids), expected, atol=2e-4, rtol=1e-3)
