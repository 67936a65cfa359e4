"""Log-likelihoods against a plain forward pass, one row at a time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from distributed_ft.data.chat import render_prompt
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.likelihood import Continuation, continuations_of_texts, windows
from distributed_ft.evaluation.task import Choose, Generate, Read

ASK = (Message("user", "upper cat"),)


def plain(base: Path, prompt: list[int], answer: list[int]) -> tuple[float, bool]:
    """By one forward pass of one row, all logits kept."""
    model = LlamaForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    of_answer = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    return float(of_answer.sum()), logits.argmax(-1).tolist() == answer


def test_choices_have_the_likelihood_of_a_plain_forward_pass(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    choices = ("CAT", "DOG", "a much longer answer than the others")
    requests = [Choose("a", ASK, choices), Choose("b", (Message("user", "twice ab and some more words"),), choices[:2])]
    for request, response in zip(requests, engine.answer(requests), strict=True):
        prompt = render_prompt(tokenizer, request.messages)
        for place, choice in enumerate(request.choices):
            ids = tokenizer.encode(choice, add_special_tokens=False)
            nats, greedy = plain(base, prompt, ids)
            assert response.nats[place] == pytest.approx(nats, abs=1e-4)
            assert response.tokens[place] == len(ids)
            assert response.greedy[place] == greedy
    assert engine.answer(requests)[0].greedy == (True, False, False)  # the base knows this one


def test_kinds_of_request_may_be_mixed(engine: TransformersEngine) -> None:
    engine.use(None)
    requests = [
        Choose("a", ASK, ("CAT", "DOG")),
        Generate("b", ASK, 8),
        Read("c", "upper cat"),
        Choose("d", ASK, ("x",)),
    ]
    for response, request in zip(engine.answer(requests), requests, strict=True):
        [alone] = engine.answer([request])
        assert response.nats == pytest.approx(alone.nats, abs=1e-5)
        assert (response.texts, response.tokens, response.greedy) == (alone.texts, alone.tokens, alone.greedy)
    assert engine.answer(requests)[1].text == "CAT"


def test_a_plain_text_goes_on_without_a_template(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    [response] = engine.answer([Choose("a", (Message(TEXT, "user name"),), (" vip", " true"))])
    nats, _ = plain(base, tokenizer.encode("user name"), tokenizer.encode(" vip"))
    assert response.nats[0] == pytest.approx(nats, abs=1e-4)


def test_white_space_before_a_choice_is_the_choices(tokenizer: PreTrainedTokenizerFast) -> None:
    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [tokenizer.encode(text) for text in texts]

    [joined, first] = continuations_of_texts(encode, ["user ", ""], ["name", "vip"], 7)
    assert joined == Continuation(tokenizer.encode("user"), tokenizer.encode(" name"))
    assert first == Continuation([7], tokenizer.encode("vip"))


def test_a_choice_of_nothing_is_an_error(engine: TransformersEngine) -> None:
    engine.use(None)
    with pytest.raises(EvaluationError, match=r"'a'.*no tokens"):
        engine.answer([Choose("a", ASK, ("yes", ""))])


def test_a_text_longer_than_the_context_is_read_by_windows(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    text = "user assistant name vip " * 120
    [response] = engine.answer([Read("t", text)])
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert engine.context is not None
    assert len(ids) > 2 * engine.context
    assert response.tokens == (len(ids),)
    whole = [plain(base, pair.prompt, pair.answer)[0] for pair in windows(ids, tokenizer.eos_token_id, engine.context)]
    assert response.nats[0] == pytest.approx(math.fsum(whole), rel=1e-4)


@pytest.mark.parametrize(("length", "most"), [(1, 4), (4, 4), (5, 4), (9, 4), (12, 5), (3, 1)])
def test_windows_judge_every_token_once_and_fit(length: int, most: int) -> None:
    found = windows(range(1, length + 1), 0, most)
    assert [token for pair in found for token in pair.answer] == list(range(1, length + 1))
    for pair in found:
        assert len(pair.prompt) + len(pair.answer) - 1 <= most
        assert pair.prompt[-1] == pair.answer[0] - 1


def test_draws_depend_on_item_and_draw_alone(engine: TransformersEngine) -> None:
    engine.use(None)
    many = [Generate(name, ASK, 6, draws=5, temperature=3.0) for name in ("a", "b")]
    both = engine.answer(many)
    assert both == [engine.answer([request])[0] for request in many]
    assert len(set(both[0].texts)) > 1
    assert both[0].texts != both[1].texts
    [cold] = engine.answer([Generate("a", ASK, 6, draws=2, temperature=0.001)])
    assert cold.texts == ("CAT", "CAT")


def test_an_answer_ends_before_a_stop_string(engine: TransformersEngine) -> None:
    engine.use(None)
    assert engine.generate([Generate("a", ASK, 8, stop=("T", "AT"))]) == ["C"]


LETTERS = tuple(" ABCDEFGH"[1:])
SHOWN = (Message("user", "upper dog"), Message("assistant", "DOG"))


def many() -> list[Choose]:
    """Items whose prompts begin alike, with choices of one token and of several, the same choices again and again."""
    asked = [(*SHOWN, Message("user", text)) for text in ("upper cat", "x", "a longer one, so that there is padding")]
    several = ("CAT", "DOG", "a much longer answer than the others", "CA")
    return [Choose(f"{i} {j}", ask, c) for i, ask in enumerate(asked) for j, c in enumerate((LETTERS, several))]


def test_choices_behind_prompts_that_begin_alike_have_the_likelihood_of_a_plain_forward_pass(
    base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = TransformersEngine(str(base), "fp32", batch_size=16)
    engine.use(None)
    for request, response in zip(many(), engine.answer(many()), strict=True):
        prompt = render_prompt(tokenizer, request.messages)
        for place, choice in enumerate(request.choices):
            nats, greedy = plain(base, prompt, tokenizer.encode(choice, add_special_tokens=False))
            assert response.nats[place] == pytest.approx(nats, abs=1e-4)
            assert response.greedy[place] == greedy


def test_a_prompt_is_read_once_for_all_choices(base: Path) -> None:
    engine = TransformersEngine(str(base), "fp32", batch_size=64)
    engine.use(None)
    read: list[int] = []
    hook = engine._loaded.model.embed_tokens.register_forward_hook(lambda _m, ids, _out: read.append(ids[0].numel()))
    requests = many()
    engine.answer(requests)
    prompts = [engine.prompt(request.messages) for request in requests]
    shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1) // 16 * 16
    tails = [sum(len(pair.answer) - 1 for pair in engine.prompts.continuations(r)) for r in requests]
    # the common beginning, and in a row for each item what follows in its prompt, with its choices behind
    assert read == [shared, len(requests) * (max(map(len, prompts)) - shared + max(tails))]
    engine.answer(requests)
    hook.remove()
    assert len(read) == 3  # what they begin with is there


@pytest.mark.parametrize("architecture", ["gpt2, learned positions", "mistral, sliding window", "qwen2, tied"])
def test_other_architectures_judge_choices_as_a_plain_forward_pass(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, architecture: str
) -> None:
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.2}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
    config = {
        "gpt2": lambda: GPT2Config(**common, n_positions=128, n_embd=32, n_layer=2, n_head=2),
        "mistral": lambda: MistralConfig(**common, **small, sliding_window=16),
        "qwen2": lambda: Qwen2Config(**common, **small, tie_word_embeddings=True),
    }[architecture.partition(",")[0]]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(str(tmp_path), "fp32", batch_size=16)
    engine.use(None)
    for request, response in zip(many(), engine.answer(many()), strict=True):
        prompt = render_prompt(tokenizer, request.messages)
        for place, choice in enumerate(request.choices):
            ids = tokenizer.encode(choice, add_special_tokens=False)
            with torch.no_grad():
                shares = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            nats = float(shares[torch.arange(len(ids)), torch.tensor(ids)].sum())
            assert response.nats[place] == pytest.approx(nats, abs=1e-3)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_choices_behind_virtual_tokens_are_judged_as_peft_does(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    torch.manual_seed(3)
    made = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind](
        task_type="CAUSAL_LM", num_virtual_tokens=5
    )
    tuned = get_peft_model(LlamaForCausalLM.from_pretrained(base), made).eval()
    tuned.save_pretrained(tmp_path)
    engine = TransformersEngine(str(base), "fp32", batch_size=16)
    engine.use(tmp_path)
    for request, response in zip(many(), engine.answer(many()), strict=True):
        prompt = render_prompt(tokenizer, request.messages)
        for place, choice in enumerate(request.choices):
            ids = tokenizer.encode(choice, add_special_tokens=False)
            with torch.no_grad():
                shares = tuned(torch.tensor([prompt + ids])).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            nats = float(shares[torch.arange(len(ids)), torch.tensor(ids)].sum())
            assert response.nats[place] == pytest.approx(nats, abs=1e-3)


def test_rows_that_are_done_leave_the_batch_and_change_nothing(base: Path) -> None:
    engine = TransformersEngine(str(base), "fp32", batch_size=16)
    engine.use(None)
    texts = ("cat", "who is nobody at all?", "a much longer request than the others", "x", "sun", "ten", "dog")
    requests = [Generate(t, (*SHOWN, Message("user", t)), limit) for t in texts for limit in (2, 30)]
    rows: list[int] = []
    hook = engine._loaded.model.embed_tokens.register_forward_hook(lambda _m, ids, _out: rows.append(len(ids[0])))
    answers = engine.generate(requests)
    hook.remove()
    assert answers == [engine.generate([request])[0] for request in requests]
    assert rows[:3] == [1, 14, 14]  # what all begin with; all of them, twice
    assert rows[3] <= 7
    assert rows[3:] == sorted(rows[3:], reverse=True)


def test_nothing_is_computed_behind_a_stop_string(base: Path) -> None:
    engine = TransformersEngine(str(base), "fp32", batch_size=4)
    engine.use(None)
    steps: list[int] = []
    engine._loaded.register_forward_hook(lambda *_: steps.append(1))
    asked = (Message("user", "form True"),)
    assert engine.generate([Generate("a", asked, 40)]) == [json.dumps({"name": "", "vip": True})]
    unbounded = len(steps)
    assert engine.generate([Generate("a", asked, 40, stop=("never", ': "'))]) == ['{"name"']
    assert len(steps) - unbounded <= len('{"name": "') < unbounded  # a token is at least a character here
