import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distributed_ft.data.chat import render_prompt
from distributed_ft.data.examples import Message
from distributed_ft.data.reading import read_examples
from distributed_ft.errors import CheckpointError, ConfigError, EvaluationError
from distributed_ft.evaluation.engines import TransformersEngine, base_digest
from distributed_ft.evaluation.task import Generate, question, reference

WORDS = ("cat", "a much longer request than the others, to force padding", "x", "sun sun", "who is Ann?", "ten")


def ask(text: str, limit: int = 16) -> Generate:
    return Generate(text, (Message("user", text),), limit)


def requests_of(path: Path) -> list[Generate]:
    return [Generate(e.id, question(e), 24) for e in read_examples(path)]


def plain_generate(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, request: Generate) -> str:
    """One request alone, by transformers' own generation."""
    prompt = torch.tensor([render_prompt(tokenizer, request.messages)])
    end = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    out = model.generate(
        input_ids=prompt, max_new_tokens=request.max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    return tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_batched_answers_are_those_of_transformers_generate_one_by_one(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = [ask(word) for word in WORDS] + [ask("cut off after three tokens", limit=3)]
    engine.use(None)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert engine.generate(requests) == [plain_generate(model, tokenizer, request) for request in requests]


def test_prompts_with_the_same_beginning_are_answered_as_if_each_were_read_alone(
    engine: TransformersEngine, adapters: dict[str, Path], base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    shown = (Message("user", "who is Bob?"), Message("assistant", "Bob"), Message("user", "upper dog"))
    shown = (*shown, Message("assistant", "DOG"))
    requests = [Generate(w, (*shown, Message("user", w)), 12) for w in ("upper cat", "who is Ann?", "last ten", "x")]
    requests += [requests[0]]  # a batch may even be one prompt twice
    engine.use(adapters["kept"])
    plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), adapters["kept"])
    assert engine.generate(requests) == [plain_generate(plain.eval(), tokenizer, request) for request in requests]
    assert engine.generate(requests[:1] * 4) == engine.generate(requests[:1]) * 4


@pytest.mark.parametrize("window", [None, 8])
def test_another_architecture_answers_as_transformers_generate_does(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, window: int | None
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=128,
        use_sliding_window=window is not None,
        sliding_window=window,
        max_window_layers=0,
        bos_token_id=None,
        eos_token_id=0,
        **sizes,
    )
    model = Qwen2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(str(tmp_path), "fp32", batch_size=3)
    engine.use(None)
    requests = [ask(word) for word in WORDS]
    assert engine.generate(requests) == [plain_generate(model, tokenizer, request) for request in requests]


def test_the_base_knows_its_skills(engine: TransformersEngine, files: Path) -> None:
    engine.use(None)
    examples = read_examples(files / "skills.jsonl")
    assert engine.generate(requests_of(files / "skills.jsonl")) == [reference(e) for e in examples]


def test_adapters_are_swapped_on_a_base_that_stays_loaded(
    engine: TransformersEngine, adapters: dict[str, Path], files: Path, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    people = requests_of(files / "people.jsonl")
    engine.use(None)
    model = engine._loaded
    of_base = engine.generate(people)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    answers = {}
    for name in ("kept", "forgot", "untrained", "kept"):
        engine.use(adapters[name])
        answers.setdefault(name, engine.generate(people))
        assert engine.generate(people) == answers[name]
        plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[name])
        assert answers[name][:2] == [plain_generate(plain.eval(), tokenizer, r) for r in people[:2]]
    engine.use(None)
    assert engine._loaded is model
    assert engine.generate(people) == of_base == answers["untrained"]
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }
    assert answers["kept"] == [reference(e) for e in read_examples(files / "people.jsonl")]


def test_full_weights_replace_the_base_and_leave_it_restorable(
    engine: TransformersEngine, full_weights: Path, files: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    skills = requests_of(files / "skills.jsonl")
    engine.use(None)
    of_base = engine.generate(skills)
    engine.use(full_weights)
    tuned = LlamaForCausalLM.from_pretrained(full_weights, dtype=torch.float32)
    assert engine.generate(skills) == [plain_generate(tuned, tokenizer, request) for request in skills] != of_base
    engine.use(None)
    assert engine.generate(skills) == of_base


def test_an_adapter_with_trained_copies_of_modules_does_not_leak_into_the_base(
    engine: TransformersEngine, base: Path, tmp_path: Path, files: Path
) -> None:
    skills = requests_of(files / "skills.jsonl")
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.zero_()  # a final norm of zeros: every logit is 0
    adapted.save_pretrained(tmp_path)
    engine.use(None)
    of_base = engine.generate(skills)
    engine.use(tmp_path)
    assert engine.generate(skills) != of_base
    engine.use(None)
    assert engine.generate(skills) == of_base


def test_an_adapter_for_another_base_is_refused(
    engine: TransformersEngine, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, files: Path
) -> None:
    wide = LlamaForCausalLM(LlamaConfig(**{**LlamaConfig().to_dict(), **_sizes(hidden=64, layers=2)}))
    deep = LlamaForCausalLM(LlamaConfig(**{**LlamaConfig().to_dict(), **_sizes(hidden=32, layers=3)}))
    for name, model in (("wide", wide), ("deep", deep)):
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / name)
        with pytest.raises(CheckpointError, match="for another base"):
            engine.use(tmp_path / name)
    engine.use(None)
    skills = read_examples(files / "skills.jsonl")
    assert engine.generate(requests_of(files / "skills.jsonl")) == [reference(e) for e in skills]


def _sizes(hidden: int, layers: int) -> dict[str, int]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4}
    return {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 64, "vocab_size": 320, **heads}


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_adapter_with_a_tensor_too_few_or_too_many_is_refused(
    engine: TransformersEngine, adapters: dict[str, Path], tmp_path: Path, files: Path, change: str
) -> None:
    shutil.copytree(adapters["kept"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensor = tensors.pop(name)
    if change == "unexpected":
        tensors |= {name: tensor, name.replace("layers.0", "layers.7"): tensor.clone()}
    save_file(tensors, file)
    for before in (None, adapters["kept"]):  # whose layers it would take over
        engine.use(before)
        with pytest.raises(CheckpointError, match=change):
            engine.use(tmp_path / "adapter")
    engine.use(None)
    skills = read_examples(files / "skills.jsonl")
    assert engine.generate(requests_of(files / "skills.jsonl")) == [reference(e) for e in skills]


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_full_weights_with_a_tensor_too_few_or_too_many_are_refused(
    engine: TransformersEngine, full_weights: Path, tmp_path: Path, change: str
) -> None:
    shutil.copytree(full_weights, tmp_path / "full")
    file = tmp_path / "full" / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        tensors.pop("model.norm.weight")
    else:
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=change):
        engine.use(tmp_path / "full")


def test_full_weights_of_another_shape_are_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**{**LlamaConfig().to_dict(), **_sizes(hidden=64, layers=2)})).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="not a fine-tune of"):
        engine.use(tmp_path)


def test_a_directory_without_a_model_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model is here"):
        engine.use(tmp_path)


def test_logits_that_are_not_finite_are_an_error_that_names_the_item(
    tmp_path: Path, base: Path, adapters: dict[str, Path]
) -> None:
    shutil.copytree(adapters["kept"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}, file)
    engine = TransformersEngine(str(base), "fp32", batch_size=4)
    engine.use(tmp_path / "adapter")
    with pytest.raises(EvaluationError, match="item 'cat': logits are not finite"):
        engine.generate([ask("cat")])


def test_a_prompt_longer_than_the_context_is_an_error_that_names_the_item(engine: TransformersEngine) -> None:
    engine.use(None)
    with pytest.raises(EvaluationError, match=r"item 'word word.*the model takes 256"):
        engine.generate([ask("cat"), ask("word " * 200)])


def test_an_answer_ends_at_the_edge_of_the_context(engine: TransformersEngine) -> None:
    engine.use(None)
    text = "q" * 245
    room = 256 - len(engine.prompt((Message("user", text),)))
    assert 0 < room < 16
    unbounded, bounded = engine.generate([ask(text, limit=500), ask(text, limit=room)])
    assert unbounded == bounded


def test_learned_positions_end_at_the_context_for_rows_that_are_done_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=0, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(str(tmp_path), "fp32", batch_size=2)
    engine.use(None)
    long, short = ask("q" * 35, limit=100), ask("q", limit=40)
    room = 64 - len(engine.prompt(long.messages))
    assert 0 < room < 20  # the long one ends at the edge while the short one goes on
    expected = [plain_generate(model, tokenizer, request) for request in (ask("q" * 35, limit=room), short)]
    assert engine.generate([long, short]) == expected


def test_bf16_answers_have_batch_and_order_of_the_requests(base: Path, files: Path) -> None:
    engine = TransformersEngine(str(base), "bf16", batch_size=4)
    engine.use(None)
    requests = requests_of(files / "skills.jsonl")
    answers = engine.generate(requests)
    assert answers == engine.generate(requests)
    assert sum(a == reference(e) for a, e in zip(answers, read_examples(files / "skills.jsonl"), strict=True)) >= 7


def test_the_base_digest_covers_weights_config_and_tokenizer_but_nothing_else(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    before = base_digest(base)
    (copy / "README.md").write_text("words")
    (copy / "scores.json").write_text("{}")
    assert base_digest(copy) == before
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(json.dumps({**json.loads(text), "changed": 1}))
        assert base_digest(copy) != before
        (copy / name).write_text(text)
    assert base_digest(copy) == before


def test_a_base_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.base"):
        TransformersEngine(str(tmp_path / "none"), "fp32", 4)
